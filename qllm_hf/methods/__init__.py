"""Methods that look at calibration text before they choose codes: AWQ, SmoothQuant, GPTQ, mixed precision."""
