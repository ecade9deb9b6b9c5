"""A field's zero surface as triangles."""
