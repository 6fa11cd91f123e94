"""The bulk of a tumour: the part of a slide in which its nests lie close together, with the stroma between them."""

from __future__ import annotations

import numpy as np

# The challenge's baseline closes its mask with a disc of this diameter (microns) too, and then draws a concave hull; a convex
# hull per group of nests needs no further parameter.
CLOSING_UM = 500.0
LEAST_SHARE = 0.1  # of the largest group's tumour area: smaller groups are no bulk


def tumor_bulk(tumor: np.ndarray, um: float) -> np.ndarray:
    """Outline the bulk on a coarse mask.

    Nests of tumour that a disc of `CLOSING_UM` bridges are one group. Groups with at least `LEAST_SHARE` of the tumour area of
    the largest one make up the bulk: the convex hulls of their tumour.

    Args:
        tumor: [h, w] bool.
        um: Microns per pixel.

    Returns:
        [h, w] bool; nothing where there is no tumour.
    """
    import cv2

    bulk = np.zeros(tumor.shape, np.uint8)
    if not tumor.any():
        return bulk.astype(bool)
    count, groups = cv2.connectedComponents(_close(tumor, CLOSING_UM / um / 2).astype(np.uint8), connectivity=8)
    areas = np.bincount(groups[tumor], minlength=count)
    for group in np.flatnonzero(areas >= max(1, LEAST_SHARE * areas.max())):
        rows, columns = np.nonzero(tumor & (groups == group))
        hull = cv2.convexHull(np.stack([columns, rows], axis=1).astype(np.int32))
        cv2.fillConvexPoly(bulk, hull, 1)
    return bulk.astype(bool)


def _close(mask: np.ndarray, radius: float) -> np.ndarray:
    """Close a mask with a disc by distances, which take as long for a large disc as for a small one."""
    import cv2

    margin = int(np.ceil(radius)) + 1  # so that the edge of the picture cuts nothing off
    padded = np.pad(mask, margin)
    near = cv2.distanceTransform((~padded).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= radius
    closed = cv2.distanceTransform(near.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) > radius
    return (closed | padded)[margin:-margin, margin:-margin]
