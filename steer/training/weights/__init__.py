"""Fine-tuning methods that are about weights: scores, masks, chains of updates, starts, differences, merging."""
