"""A comparison of models on one page: what it holds, its plots, and the page itself."""
