"""steer: make diffusion models, LLMs and VLMs do what you want, at inference time."""
