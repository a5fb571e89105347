"""The tabs of the page, one file each. These files, and `qllm_hf.demo.app`, are the only ones that need gradio."""
