"""A picture in, an object out."""
