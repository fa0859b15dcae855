"""The keys and values of the alignment handbook's four preference recipes, by the name of their file in recipes/."""

ULTRAFEEDBACK = """
dataset_mixture:
  datasets:
    - {id: HuggingFaceH4/ultrafeedback_binarized, config: default, split: train_prefs, columns: [chosen, rejected],
       weight: 1.0}
    - {id: HuggingFaceH4/ultrafeedback_binarized, config: default, split: test_prefs, columns: [chosen, rejected],
       weight: 1.0}
  test_split_size: 2000
  seed: 0
dataset_num_proc: 12
"""
ZEPHYR = """
beta: 0.01
eval_strategy: steps
max_length: 1024
max_prompt_length: 512
num_train_epochs: 1
save_strategy: "steps"
save_steps: 100
save_total_limit: 1
"""
COMMON = """
bf16: true
do_eval: true
eval_steps: 100
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: False}
log_level: info
logging_steps: 10
lr_scheduler_type: cosine
push_to_hub: true
seed: 42
warmup_ratio: 0.1
"""
RECIPES = {
    "zephyr-7b-beta/dpo/config_full.yaml": f"""
model_name_or_path: alignment-handbook/zephyr-7b-sft-full
torch_dtype: null
{ULTRAFEEDBACK}{COMMON}{ZEPHYR}
gradient_accumulation_steps: 2
hub_model_id: zephyr-7b-dpo-full
learning_rate: 5.0e-7
optim: adamw_torch
output_dir: data/zephyr-7b-dpo-full
per_device_train_batch_size: 8
per_device_eval_batch_size: 8
""",
    "zephyr-7b-beta/dpo/config_qlora.yaml": f"""
model_name_or_path: alignment-handbook/zephyr-7b-sft-qlora
torch_dtype: float16
use_peft: true
load_in_4bit: true
lora_r: 16
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]
dataset_mixer:
  HuggingFaceH4/ultrafeedback_binarized: 1.0
dataset_splits: [train_prefs, test_prefs]
preprocessing_num_workers: 12
{COMMON}{ZEPHYR.replace("eval_strategy", "evaluation_strategy")}
gradient_accumulation_steps: 1
hub_model_id: zephyr-7b-dpo-qlora
learning_rate: 5.0e-6
optim: paged_adamw_32bit
output_dir: data/zephyr-7b-dpo-qlora
per_device_train_batch_size: 4
per_device_eval_batch_size: 8
""",
    "smollm2/dpo/config.yaml": f"""
model_name_or_path: loubnabnl/smollm2-1.7B-sft
torch_dtype: bfloat16
{ULTRAFEEDBACK}{COMMON}
beta: 0.5
hub_private_repo: true
eval_strategy: steps
gradient_accumulation_steps: 8
hub_model_id: smollm2-1.7B-dpo
learning_rate: 1.0e-6
max_length: 1024
max_prompt_length: 512
num_train_epochs: 3
optim: adamw_torch
output_dir: data/smollm2-1.7B-dpo
per_device_train_batch_size: 2
per_device_eval_batch_size: 4
report_to: [tensorboard, wandb]
save_strategy: "no"
""",
    "smollm3/dpo/apo.yaml": """
model_name_or_path: HuggingFaceTB/SmolLM3-3B-checkpoints
model_revision: it-SFT
torch_dtype: bfloat16
attn_implementation: flash_attention_2
trust_remote_code: true
chat_template: "{% for message in messages %}{{ message['content'] }}{% endfor %}"
dataset_mixture:
  datasets:
    - id: HuggingFaceTB/smoltalk2
      config: Preference
      split: llama_3.1_tulu_3_8b_preference_mixture_no_think
      columns: [chosen, rejected, prompt, chat_template_kwargs]
      weight: 0.5
    - id: HuggingFaceTB/smoltalk2
      config: Preference
      split: tulu_3_8b_pref_mix_Qwen3_32B_Qwen3_0.6B_think
      columns: [chosen, rejected, prompt, chat_template_kwargs]
      weight: 0.25
dataset_num_proc: 12
bf16: true
do_eval: false
eval_strategy: 'no'
gradient_accumulation_steps: 2
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: true}
output_dir: data/SmolLM3-DPO
run_name: SmolLM3-DPO
hub_strategy: every_save
learning_rate: 1.0e-06
log_level: info
logging_steps: 1
logging_strategy: steps
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr_rate: 0.1}
max_grad_norm: 0.2
beta: 0.05
loss_type: apo_zero
max_length: 24576
num_train_epochs: 1
overwrite_output_dir: true
per_device_train_batch_size: 1
push_to_hub: true
padding_free: true
report_to: [wandb]
save_strategy: steps
save_steps: 0.5
save_total_limit: 1
seed: 42
use_liger_kernel: true
warmup_ratio: 0.1
""",
}
