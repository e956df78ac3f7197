"""`make gpu-check`: whether graphs compute on CUDA what they compute on the CPU, where, and how fast."""
