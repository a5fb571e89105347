"""`python -m qllm_hf`, which is what `torchrun -m qllm_hf` needs, is the program `qllm-hf`."""

from .cli.main import main

if __name__ == "__main__":
    main()
