"""From COCO json files to training samples: registration, audit, augmentation, mapper, loaders, generated scenes."""
