"""A page that scores items of ability "trust". On the Hub this file is what the Space runs."""

from qllm_hf.evaluation.modules import page

if __name__ == "__main__":
    page.launch("trust")
