"""The kernels of qllm_hf: compiled or generated code behind plain functions, without anything else of qllm_hf.

`cpu` is the library of C++ kernels for processors. Importing this package loads nothing; what is not there says why.
"""
