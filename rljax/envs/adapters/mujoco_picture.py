# pyright: reportMissingImports=false
"""Pictures of MuJoCo's models without OpenGL, for brax and playground.

A sketch in parallel projection: MuJoCo's own renderer needs a display or drivers, and
without them may end the process.
"""

from typing import Any

import mujoco as mujoco_module
import numpy as np
from PIL import Image, ImageDraw

mujoco: Any = mujoco_module  # compiled, without types
_HEIGHT, _WIDTH = 240, 320
_SKY, _GROUND, _LINE = (214, 226, 240), (168, 178, 190), (60, 66, 74)
_SIDE, _UP = np.radians(15.0), np.radians(20.0)  # of the viewer, from the x-z plane
# Rows: right, up and towards the viewer.
_VIEW = np.array(
    [
        [np.cos(_SIDE), -np.sin(_SIDE), 0.0],
        [np.sin(_SIDE) * np.sin(_UP), np.cos(_SIDE) * np.sin(_UP), np.cos(_UP)],
        [-np.sin(_SIDE) * np.cos(_UP), -np.cos(_SIDE) * np.cos(_UP), np.sin(_UP)],
    ]
)
_PLANE, _BOX = int(mujoco.mjtGeom.mjGEOM_PLANE), int(mujoco.mjtGeom.mjGEOM_BOX)
_LONG = (int(mujoco.mjtGeom.mjGEOM_CAPSULE), int(mujoco.mjtGeom.mjGEOM_CYLINDER))


def draw(model: Any, qpos: np.ndarray) -> np.ndarray:
    """Draw a model in a position: uint8 `[240, 320, 3]`.

    Args:
      model: a `mujoco.MjModel`.
      qpos: `[nq]` generalised coordinates.
    """
    solid = model.geom_type != _PLANE
    data = _placed(model, model.qpos0)
    reach = np.linalg.norm(data.geom_xpos - _centre(data), axis=1) + model.geom_rbound
    scale = 0.45 * _HEIGHT / max(reach[solid].max(initial=0.0), 1e-3)
    data = _placed(model, qpos)
    centre = _centre(data)

    def place(points: np.ndarray) -> np.ndarray:
        right, up, _ = _VIEW @ (np.atleast_2d(points) - centre).T * scale
        return np.stack([_WIDTH / 2 + right, _HEIGHT / 2 - up], axis=1)

    image = Image.new("RGB", (_WIDTH, _HEIGHT), _SKY)
    canvas = ImageDraw.Draw(image)
    for geom in np.flatnonzero(~solid):
        _draw_ground(canvas, place, centre, height=data.geom_xpos[geom][2])
    depth = data.geom_xpos @ _VIEW[2]
    for geom in np.argsort(depth):
        if solid[geom] and model.geom_rgba[geom][3] > 0:
            _draw_geom(canvas, place, model, data, geom=geom, scale=scale)
    return np.array(image)


def _placed(model: Any, qpos: np.ndarray) -> Any:
    """Return MuJoCo's data of a position."""
    data = mujoco.MjData(model)
    data.qpos = qpos
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    return data


def _centre(data: Any) -> np.ndarray:
    """Return the centre of mass of all that moves."""
    return np.array(data.subtree_com[0])


def _draw_ground(canvas: Any, place: Any, centre: np.ndarray, *, height: float) -> None:
    """Draw a plane with lines one unit apart, so that motion shows."""
    reach = 20.0
    corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * reach
    middle = np.array([round(centre[0]), round(centre[1]), height])
    canvas.polygon([tuple(p) for p in place(corners + middle)], fill=_GROUND)
    for x in np.arange(-reach, reach + 1):
        ends = middle + np.array([[x, -reach, 0.0], [x, reach, 0.0]])
        canvas.line([tuple(p) for p in place(ends)], fill=_SKY)


def _draw_geom(
    canvas: Any, place: Any, model: Any, data: Any, *, geom: int, scale: float
) -> None:
    """Draw a solid: a box by its outline, others as balls and bars."""
    size, middle = model.geom_size[geom], data.geom_xpos[geom]
    turn = data.geom_xmat[geom].reshape(3, 3)
    colour = tuple(int(255 * c) for c in model.geom_rgba[geom][:3])
    kind = int(model.geom_type[geom])
    if kind == _BOX:
        signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8).T
        points = place(middle + (signs * size) @ turn.T)
        canvas.polygon(_outline(points), fill=colour, outline=_LINE)
        return
    ends = np.array([middle, middle])
    if kind in _LONG:
        ends = middle + np.outer([-1, 1], turn[:, 2] * size[1])
    radius = size[0] if size[0] > 0 else model.geom_rbound[geom]
    radius = max(radius * scale, 1.0)
    points = place(ends)
    canvas.line([tuple(p) for p in points], fill=colour, width=round(2 * radius))
    for x, y in points:
        canvas.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)


def _outline(points: np.ndarray) -> list[tuple[float, float]]:
    """Return the convex hull of a few points, in order."""
    hull = []
    start = points[np.lexsort(points.T)][0]
    while not hull or not np.allclose(start, hull[0]):
        hull.append(start)
        nxt = points[0] if not np.allclose(points[0], start) else points[1]
        for point in points:
            (ax, ay), (bx, by) = nxt - start, point - start
            if ax * by - ay * bx < -1e-9:
                nxt = point
        start = nxt
        if len(hull) > len(points):
            break
    return [tuple(p) for p in hull]
