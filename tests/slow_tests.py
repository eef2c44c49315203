"""Which tests `make test-quick` leaves out, beside those with the mark `slow` of their own."""

FILES = (
    "calib/tasks/test_cifar10_files.py", "deploy/backends/test_onnxruntime.py",
    "deploy/backends/test_onnxruntime_providers.py", "deploy/backends/test_tensorrt.py",
    "deploy/backends/test_tensorrt_kernels.py", "deploy/backends/test_tensorrt_module.py",
    "deploy/devices/test_bundle.py", "deploy/devices/test_mutations.py", "deploy/devices/test_odd_devices.py",
    "deploy/devices/test_runner_zip.py", "deploy/devices/test_ssh.py", "deploy/devices/test_ssh_loop.py",
    "deploy/doctor/test_command.py", "deploy/latency/test_curve.py", "deploy/latency/test_loop.py",
    "deploy/latency/test_loop_refusals.py", "deploy/report/test_browser.py", "deploy/run/test_lock.py",
    "deploy/run/test_loop_history.py", "deploy/run/test_trust.py", "deploy/runner/test_causes.py",
    "deploy/runner/test_doctor.py", "deploy/runner/test_failing_engines.py", "deploy/runner/test_main.py",
    "deploy/stages/test_bundles.py", "deploy/stages/test_computed_once.py", "deploy/stages/test_curving.py",
    "deploy/stages/test_finetuning.py", "deploy/stages/test_looping.py", "deploy/stages/test_reconstructing.py",
    "deploy/stages/test_supernet.py", "deploy/stages/test_verifying.py", "deploy/test_broken_graphs.py",
    "deploy/test_large_models.py", "deploy/test_capabilities_hold.py", "deploy/test_forged_weights.py",
    "deploy/test_networks.py", "deploy/test_residual_adds.py", "deploy/test_training_device.py",
    "examples/test_cifar10_mlp.py", "examples/test_custom_task.py", "nvidia/test_bindings.py",
    "promise/test_promise.py", "run_files/test_mutations.py", "smpq/reconstruction/test_reconstruct.py",
    "smpq/training/bits/test_train.py", "smpq/training/test_devices.py", "smpq/training/test_finetune.py",
    "smpq/training/test_finetuned.py", "smpq/value/workers/test_local.py", "smpq/value/workers/test_ray.py",
    "test_benchmarks.py", "test_cli.py", "test_killed_runs.py", "test_odd_networks.py", "test_same_files.py",
    "test_whole_job.py", "test_wrong_data.py", "test_wrong_inputs.py", "test_wrong_run_files.py",
)  # fmt: skip
"""Files of whole runs, of processes and of hundreds of networks, below `tests`: all their tests are slow, and `make
test-quick` does not even import them.
"""

FUNCTIONS = (
    "test_a_build_that_was_stopped_repeats_no_plan", "test_a_candidate_is_named_by_its_content_and_made_once",
    "test_a_copy_is_nobody_elses", "test_a_float_policy_changes_nothing",
    "test_a_network_whose_norms_are_folded_is_as_without",
    "test_a_pair_has_one_float_type", "test_a_pickled_copy_gives_the_same_values_without_calibration_data",
    "test_a_plan_is_carried_out_as_the_search_does", "test_a_policy_within_the_budget_and_the_same_one_again",
    "test_a_trained_policy_within_the_budget_and_the_same_one_again",
    "test_a_signal_that_was_ignored_stays_so", "test_an_interacting_game_against_all_orders",
    "test_attention_has_its_two_projections", "test_blocks_multiply_rows_and_the_results_keep_their_names",
    "test_both_operands_of_an_add_and_whoever_reads_the_same_tensor",
    "test_cifar10_trains_on_what_does_not_calibrate",
    "test_contexts_lie_in_the_range_of_bits_that_is_asked_for",
    "test_eight_bits_agree_with_float_within_their_steps", "test_every_function_has_a_graph_of_its_own",
    "test_every_rule_of_a_table_decides_something", "test_faithful_traces_pass", "test_folds",
    "test_is_as_good_as_brute_force", "test_it_is_fetched_from_the_device_and_kept_here", "test_layer_and_skip",
    "test_leaves_alone", "test_limits_and_odd_spellings_that_are_numbers", "test_moments_of_a_convolution",
    "test_more_bits_come_closer", "test_mutated_checkpoints_are_read_or_refused",
    "test_nearby_weights_are_nearer_to_the_float_ones",
    "test_never_worse_than_the_starts_and_within_the_ceilings", "test_nothing_is_taken_on_trust",
    "test_float_layers_and_linear_layers_that_the_plan_does_not_name_are_left_alone",
    "test_operators_that_could_draw_but_do_not_are_traced", "test_programs_and_files_are_as_without",
    "test_programs_and_operators_are_as_without", "test_random_networks_are_refused",
    "test_sampling_stops_once_there_is_nothing_to_gain", "test_small_files_that_ask_for_much_memory",
    "test_tensorrt_builds_on_the_device_and_the_job_goes_on_to_its_end",
    "test_the_batch_is_free_only_where_the_trace_holds_for_what_will_run",
    "test_the_expected_gain_is_what_is_not_known", "test_the_cpp_program_loads_and_runs_the_plan",
    "test_the_rounds_improve_on_scores_that_mislead", "test_the_weights_are_restored_once_for_all_policies",
    "test_tuples_attention_and_several_outputs", "test_twins_score_alike", "test_unfaithful_traces_are_refused",
    "test_what_keeps_the_grid", "test_what_the_device_no_longer_has_is_none",
)  # fmt: skip
"""Tests in other files that took a second or more on one core, all parameters together."""
