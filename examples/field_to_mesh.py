"""Any field becomes a mesh, object.ply: python examples/field_to_mesh.py

A field takes points (P, 3) and gives (P,) numbers, negative inside the object.
"""

import torch

import d2im


def field(points):
    """A ball with waves on it."""
    return points.norm(dim=1) - 0.4 + 0.02 * torch.sin(30 * points).prod(1)


mesh = d2im.extract_mesh(field, resolution=96)
mesh.export("object.ply")
print(f"object.ply: {len(mesh.faces):,} faces, closed: {mesh.is_watertight}")
