"""OrienMask: real-time instance segmentation with discriminative orientation maps (Du et al., ICCV 2021)."""
