"""ImageNet-256 on disk -> checked, and linked or thinned out."""
