"""The update of the policy: Ray Train's workers under DeepSpeed ZeRO, fed with global batches by position."""
