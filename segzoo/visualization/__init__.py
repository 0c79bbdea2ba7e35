"""Pictures of results and of what methods compute on the way: numpy arrays in, BGR images out."""

from segzoo.visualization.canvas import draw_text, instance_color, save_image, side_by_side
from segzoo.visualization.overlay import draw_boxes, draw_instances, draw_mask
from segzoo.visualization.rays import draw_heat, draw_points, draw_polygons, draw_rays
from segzoo.visualization.vectors import color_wheel, draw_arrows, draw_vectors, gradient_magnitude, vector_colors

__all__ = [
    "color_wheel",
    "draw_arrows",
    "draw_boxes",
    "draw_heat",
    "draw_instances",
    "draw_mask",
    "draw_points",
    "draw_polygons",
    "draw_rays",
    "draw_text",
    "draw_vectors",
    "gradient_magnitude",
    "instance_color",
    "save_image",
    "side_by_side",
    "vector_colors",
]
