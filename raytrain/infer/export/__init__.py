"""A trained model for those without raytrain."""
