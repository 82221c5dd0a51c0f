"""Face ViT, CLIP text towers, FaceCLIP's fuser, the M² ID encoder."""
