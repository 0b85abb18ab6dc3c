"""A Hub on this machine: what the unmodified Hugging Face client asks for, answered from a folder, with faults on request."""
