"""From a trained model to files that run without Detectron2; see docs/export.md.

`plan` says what a model gives, `graphs` makes torch.export's programs, `files` writes them, `parity` holds them against
the model. `runtime` is for the other side: it imports neither torch nor Detectron2, so this file must not either.
"""
