"""The names that a DeepSpeed config may contain, so that a misspelt one is found before work starts.

DeepSpeed ignores unknown names at the top, and it cannot be imported on a driver without a GPU, so they stand here.
`tests/training/test_deepspeed_config.py` compares them with the installed version.
"""

TOP_LEVEL = frozenset(
    """
    activation_checkpointing aio autotuning bf16 bfloat16 checkpoint comet comms_logger communication_data_type compile
    csv_monitor data_efficiency data_types dataloader_drop_last datastates_ckpt disable_allgather disable_python_gc
    dump_state expert_parallel flops_profiler fp16 gradient_accumulation_steps gradient_allreduce_op gradient_clipping
    gradient_predivide_factor hybrid_engine log_level managed_gradient_accumulation memory_breakdown optimizer pipeline
    prescale_gradients scheduler seq_parallel_communication_data_type sequence_parallel_size steps_per_print
    tensor_parallel tensorboard timers torch_autocast train_batch_size train_micro_batch_size_per_gpu
    use_data_before_expert_parallelism vocabulary_size wall_clock_breakdown wandb weight_quantization
    zero_allow_untested_optimizer zero_force_ds_cpu_optimizer zero_optimization
    """.split()
)
ZERO = frozenset(
    """
    allgather_bucket_size allgather_partitions compute_grad_norm contiguous_gradients cpu_offload cpu_offload_param
    cpu_offload_use_pin_memory elastic_checkpoint enable_sanity_checks gather_16bit_weights_on_model_save
    ignore_unused_parameters leaf_module legacy_stage1 load_from_fp32_weights log_trace_cache_warnings
    max_live_parameters max_reuse_distance memory_efficient_linear model_persistence_threshold
    module_granularity_threshold offload_optimizer offload_param overlap_comm override_module_apply parameter_alignment
    allgather_sequential param_persistence_threshold pipeline_loading_checkpoint prefetch_bucket_size
    reduce_bucket_size reduce_scatter round_robin_gradients save_muon_momentum_buffer_in_memory stage
    stage3_allgather_sequential stage3_gather_16bit_weights_on_model_save stage3_gather_fp16_weights_on_model_save
    stage3_max_live_parameters stage3_max_reuse_distance stage3_model_persistence_threshold
    stage3_module_granularity_threshold stage3_param_persistence_threshold stage3_prefetch_bucket_size
    stage3_use_all_reduce_for_fetch_params sub_group_size use_all_reduce_for_fetch_params
    use_multi_rank_bucket_allreduce zenflow zero_hpz_partition_size zero_quantized_gradients
    zero_quantized_nontrainable_weights zero_quantized_weights
    """.split()
)
BF16 = frozenset(
    "enabled immediate_grad_update check_grad_overflow bf16_master_weights_and_grads bf16_optimizer_states".split()
)
FP16 = frozenset(
    """
    enabled auto_cast loss_scale initial_scale_power loss_scale_window hysteresis consecutive_hysteresis min_loss_scale
    fp16_master_weights_and_grads
    """.split()
)
SECTIONS: dict[str, frozenset[str]] = {
    "zero_optimization": ZERO,
    "bf16": BF16,
    "fp16": FP16,
    "optimizer": frozenset({"type", "params", "legacy_fusion"}),
    "scheduler": frozenset({"type", "params"}),
}
"""The names within each section that is checked here; DeepSpeed checks the others when workers start."""

SCHEDULERS: dict[str, frozenset[str]] = {
    "WarmupLR": frozenset({"warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type"}),
    "WarmupDecayLR": frozenset(
        {"total_num_steps", "warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type"}
    ),
    "WarmupCosineLR": frozenset(
        {"total_num_steps", "warmup_min_ratio", "warmup_num_steps", "cos_min_ratio", "warmup_type"}
    ),
    "OneCycle": frozenset(
        """
        cycle_min_lr cycle_max_lr decay_lr_rate cycle_first_step_size cycle_second_step_size cycle_first_stair_count
        cycle_second_stair_count decay_step_size cycle_momentum cycle_min_mom cycle_max_mom decay_mom_rate
        """.split()
    ),
    "LRRangeTest": frozenset(
        {
            "lr_range_test_min_lr",
            "lr_range_test_step_size",
            "lr_range_test_step_rate",
            "lr_range_test_staircase",
        }
    ),
}
"""DeepSpeed's own schedules (deepspeed/runtime/lr_schedules.py) with their parameters."""

OPTIMIZERS = frozenset({"adagrad", "adam", "adamw", "lamb", "lion", "muadam", "muadamw", "musgd", "muon"})
"""The optimizers that DeepSpeed builds, in lower case; it takes other names from torch.optim."""
ADAM = frozenset({"adam", "adamw"})
COMPILED = frozenset({"lamb", "lion", "muon"})
"""Those among them that are compiled for a GPU when they are first used."""
ZERO_TESTED = frozenset({"adagrad", "adam", "adamw", "lion", "muon"})
"""Those that ZeRO takes without zero_allow_untested_optimizer."""
