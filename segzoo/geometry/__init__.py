"""Boxes, masks, contours, polygons and run lengths: pure functions of tensors."""
