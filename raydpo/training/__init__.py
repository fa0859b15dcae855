"""The updates of the policy: Ray Train's workers under DeepSpeed ZeRO, which get global batches from the feed."""
