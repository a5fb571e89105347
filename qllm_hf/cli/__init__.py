"""The command line: qllm-hf VERB, and the same functions as `optimum-cli qllm VERB`."""
