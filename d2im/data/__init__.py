"""Where examples come from: shapes, meshes, pictures, points, and their files."""
