"""Low-rank adaptation of PyTorch models (Hu et al., arXiv 2106.09685). Needs torch and nothing else of weight."""
