"""Fields of the schedulers that the families' folders come with; their other classes have a test of their own."""

from tests.conformance.fields import Fields, honoured, inert, refused, unusable
from tests.conformance.folders import Together

_BETAS = [0.001 + 0.00002 * index for index in range(1000)]
_FLOW_ONLY = "of a schedule of flow matching"
_CLIPPING = "nothing without thresholding"
_UNSHIFTED = "nothing without use_dynamic_shifting"
_DERIVED = "noise levels come from flow_shift alone"

DPM: Fields = {
    "num_train_timesteps": honoured(500),
    "beta_start": honoured(0.002),
    "beta_end": honoured(0.03),
    "beta_schedule": honoured("linear", "squaredcos_cap_v2"),
    "trained_betas": honoured(_BETAS),
    "solver_order": (*honoured(1), *inert("4 steps end before a third order begins", 3)),
    "prediction_type": (*honoured("v_prediction", "sample"), *unusable("nonsense")),
    "thresholding": honoured(True),
    "dynamic_thresholding_ratio": (*inert(_CLIPPING, 0.5), *honoured(Together(0.5, {"thresholding": True}))),
    "sample_max_value": (*inert(_CLIPPING, 3.0), *honoured(Together(3.0, {"thresholding": True}))),
    "algorithm_type": (*honoured("sde-dpmsolver++"), *unusable("dpmsolver", "nonsense")),
    "solver_type": honoured("heun"),
    "lower_order_final": inert("the last step to no noise is of first order anyway", False),
    "euler_at_final": inert("the last step to no noise is of first order anyway", True),
    "use_karras_sigmas": honoured(True),
    "use_exponential_sigmas": honoured(True),
    "use_beta_sigmas": honoured(True),
    "use_lu_lambdas": honoured(True),
    "use_flow_sigmas": honoured(True),
    "flow_shift": inert(_FLOW_ONLY, 3.0),
    "final_sigmas_type": honoured("sigma_min"),
    "lambda_min_clipped": inert("cuts less than the schedule has", -3.0),
    "variance_type": unusable("learned_range"),
    "timestep_spacing": (*honoured("leading", "trailing"), *unusable("nonsense")),
    "steps_offset": inert("of leading timesteps; this pipeline makes it 1", 1),
    "rescale_betas_zero_snr": honoured(True),
    "use_dynamic_shifting": inert(_FLOW_ONLY, True),
    "time_shift_type": inert(_UNSHIFTED, "linear"),
}
OF_SANA: Fields = {
    "flow_shift": honoured(1.5),
    "prediction_type": honoured("v_prediction", "sample"),
    "beta_start": inert(_DERIVED, 0.002),
    "use_flow_sigmas": honoured(False),
    "timestep_spacing": inert(_DERIVED, "trailing"),
}
EULER: Fields = {
    "num_train_timesteps": honoured(500),
    "beta_start": honoured(0.002),
    "beta_end": honoured(0.03),
    "beta_schedule": honoured("linear"),
    "trained_betas": honoured(_BETAS),
    "prediction_type": honoured("v_prediction", "sample"),
    "interpolation_type": (*honoured("log_linear"), *unusable("nonsense")),
    "use_karras_sigmas": honoured(True),
    "use_exponential_sigmas": honoured(True),
    "use_beta_sigmas": honoured(True),
    "sigma_min": (*inert("of derived schedules", 0.1), *honoured(Together(0.1, {"use_karras_sigmas": True}))),
    "sigma_max": (*inert("of derived schedules", 10.0), *honoured(Together(10.0, {"use_karras_sigmas": True}))),
    "timestep_spacing": honoured("leading", "trailing"),
    "timestep_type": (
        *inert("of models that predict v", "continuous"),
        *honoured(Together("continuous", {"prediction_type": "v_prediction"})),
    ),
    "steps_offset": (*inert("of leading timesteps", 1), *honoured(Together(7, {"timestep_spacing": "leading"}))),
    "rescale_betas_zero_snr": honoured(True),
    "final_sigmas_type": honoured("sigma_min"),
}  # fmt: skip
FLOW_EULER: Fields = {
    "num_train_timesteps": honoured(500),
    "shift": honoured(1.5),
    "use_dynamic_shifting": honoured(True),
    "base_shift": inert(_UNSHIFTED, 0.1),
    "max_shift": inert(_UNSHIFTED, 3.0),
    "base_image_seq_len": inert(_UNSHIFTED, 16),
    "max_image_seq_len": inert(_UNSHIFTED, 512),
    "invert_sigmas": refused(True),  # from a picture to noise
    "shift_terminal": honoured(0.1),
    "use_karras_sigmas": honoured(True),
    "use_exponential_sigmas": honoured(True),
    "use_beta_sigmas": honoured(True),
    "time_shift_type": inert(_UNSHIFTED, "linear"),
    "stochastic_sampling": honoured(True),
}
SHIFTED_FLOW_EULER: Fields = {
    "shift": inert("nothing with use_dynamic_shifting", 1.5),
    "use_dynamic_shifting": honoured(False),
    "base_shift": honoured(0.1),
    "max_shift": honoured(3.0),
    "base_image_seq_len": honoured(16),
    "max_image_seq_len": honoured(512),
    "shift_terminal": honoured(0.1),
    "time_shift_type": honoured("linear"),
}
OF_FLUX_2: Fields = {
    "shift": inert("nothing with use_dynamic_shifting", 1.5),
    "use_dynamic_shifting": honoured(False),
    "base_shift": inert("its pipeline has a formula of its own", 0.1),
    "max_shift": inert("its pipeline has a formula of its own", 3.0),
    "base_image_seq_len": inert("its pipeline has a formula of its own", 16),
    "max_image_seq_len": inert("its pipeline has a formula of its own", 512),
    "time_shift_type": honoured("linear"),
}
