"""A picture becomes a mesh, object.glb: python examples/picture_to_mesh.py PICTURE

Without a picture it takes that of a chair made by rule, whose camera is known.
"""

import sys

import numpy as np

import d2im

model = d2im.D2IMNet.from_pretrained("data/models/d2im-base")
if pictures := sys.argv[1:]:  # a network guesses the camera
    camera = d2im.CameraNet.from_pretrained("data/models/camera-small").camera
else:
    camera = d2im.Camera(azimuth=30, elevation=20, ratio=0.9, size=model.image_size)
    chair = d2im.make_shape("chair", 7).detailed
    pictures = [d2im.render(chair, camera, np.random.default_rng(0)).image]
found = d2im.reconstruct(model, pictures[0], camera)
found.export("object.glb")
print(f"object.glb: {len(found.mesh.faces):,} faces")
