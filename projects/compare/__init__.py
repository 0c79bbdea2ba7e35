"""Models trained on one data set under one budget, measured side by side; the command is tools/compare.py."""
