"""One model behind an address that OpenAI's clients understand: transformers' server, held to one model and limits."""
