"""A config is completed by what llama.cpp's converter reads and transformers 5 does not write."""

from luthier.ml.export.exporters.gguf_config import UnpaddedConfig, older_names, published_name


def test_a_config_is_completed_by_the_names_that_the_converter_reads():
    new = {"n_positions": 1024, "vocab_size": 50257, "rope_parameters": {"partial_rotary_factor": 0.25}}
    older_names(new)
    assert (new["n_ctx"], new["rotary_pct"], new["pad_vocab_size_multiple"]) == (1024, 0.25, 1)
    published = {"n_ctx": 512, "n_positions": 1024, "rotary_pct": 0.5, "rope_parameters": {}}
    older_names(published)
    assert published == {"n_ctx": 512, "n_positions": 1024, "rotary_pct": 0.5, "rope_parameters": {}}
    outer = {"text_config": {"max_position_embeddings": 64, "rope_parameters": {"rope_theta": 1e4}}}
    older_names(outer)
    assert outer["text_config"]["n_ctx"] == 64
    assert outer["text_config"]["rotary_pct"] == 1.0
    glm, llama = {"model_type": "glm4_moe_lite"}, {"model_type": "llama"}
    older_names(glm)
    older_names(llama)
    assert glm["scoring_func"] == "sigmoid"
    assert "scoring_func" not in llama
    hunyuan = {"model_type": "hunyuan_v1_moe", "intermediate_size": 64, "moe_topk": 2}
    older_names(hunyuan)
    older_names(hunyuan)  # what it has written is read again
    assert (hunyuan["moe_topk"], hunyuan["moe_intermediate_size"], hunyuan["num_shared_expert"]) == ([2], [64], [1])
    for is_new, heads in ((False, 1), (True, 71)):
        falcon = {"multi_query": True, "new_decoder_architecture": is_new, "num_kv_heads": 71}
        older_names(falcon)
        assert falcon["num_kv_heads"] == heads


def test_hybrids_are_completed_by_how_their_layers_alternate():
    linear, full = "linear_attention", "full_attention"
    nemotron = {"layers_block_type": [linear, "mlp", full, "mlp"], "num_experts_per_tok": 2}
    older_names(nemotron)
    assert (nemotron["hybrid_override_pattern"], nemotron["num_hidden_layers"]) == ("M-*-", 4)
    assert "num_experts_per_tok" not in nemotron  # by which the converter takes it for one with experts
    with_experts = {"layers_block_type": [linear, "moe"], "num_experts_per_tok": 2}
    older_names(with_experts)
    assert (with_experts["hybrid_override_pattern"], with_experts["num_experts_per_tok"]) == ("ME", 2)
    for kinds, interval in (([linear, full] * 2, 2), ([linear] * 3 + [full], 4), ([full, linear, linear, full], None)):
        qwen = {"layer_types": kinds}
        older_names(qwen)
        assert qwen.get("full_attention_interval") == interval
    kimi = {"layer_types": [linear, linear, full], "mlp_layer_types": ["dense", "sparse", "sparse"]}
    kimi |= {"linear_num_heads": 4, "linear_head_dim": 8, "linear_conv_kernel_dim": 4}
    older_names(kimi)
    assert kimi["first_k_dense_replace"] == 1
    assert kimi["linear_attn_config"] == {
        "full_attn_layers": [3], "kda_layers": [1, 2], "num_heads": 4, "head_dim": 8, "short_conv_kernel_size": 4,
    }  # fmt: skip
    granite = {"mamba_n_heads": 4, "layer_types": [linear, full]}
    older_names(granite)
    assert granite["layer_types"] == ["mamba", "attention"]
    falcon = {"mamba_d_head": 16, "hidden_size": 96, "num_attention_heads": 4}
    older_names(falcon)
    assert falcon["head_dim"] == falcon["attn_rotary_emb"] == 24
    bamba = {"mamba_d_head": 16, "hidden_size": 96, "num_attention_heads": 4}
    bamba |= {"rope_parameters": {"partial_rotary_factor": 0.5}}
    older_names(bamba)
    assert bamba["attn_rotary_emb"] == 12


def test_drafting_heads_that_transformers_does_not_save_are_not_announced():
    glm = {"num_hidden_layers": 46, "num_nextn_predict_layers": 1, "text_config": {"mtp_num_hidden_layers": 1}}
    older_names(glm)
    assert glm == {"num_hidden_layers": 46, "num_nextn_predict_layers": 0, "text_config": {"mtp_num_hidden_layers": 0}}


def test_dense_layers_before_experts_have_their_published_name():
    assert published_name("model.layers.0.block_sparse_moe.down_proj.weight") == "model.layers.0.mlp.down_proj.weight"
    for name in (
        "model.layers.1.block_sparse_moe.gate.weight",
        "model.layers.1.block_sparse_moe.shared_experts.down_proj.weight",
        "model.layers.1.block_sparse_moe.experts.0.w1.weight",
    ):
        assert published_name(name) == name


def test_a_vocabulary_is_not_padded():
    config = UnpaddedConfig({"vocab_size": 403})
    config["pad_vocab_size_multiple"] = 8
    config["hidden_size"] = 32
    assert config == {"vocab_size": 403, "pad_vocab_size_multiple": 1, "hidden_size": 32}
