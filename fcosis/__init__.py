"""FCOSIS: instance segmentation on FCOS with attention from coarse to fine, and the paper's FCOSReg and MaskFCOS."""
