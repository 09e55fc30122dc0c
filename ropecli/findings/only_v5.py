"""Model types that transformers 4 never had, so that no reader of its schema expects them."""

ONLY_IN_V5 = frozenset(
    {
        *("afmoe", "apertus1p5", "apertus1p5_text", "audioflamingo3", "axk1", "axk2", "bailing_hybrid", "beam"),
        *("chatglm", "cohere2_moe", "colmodernvbert", "cosmos3_edge", "cosmos3_edge_text", "cosmos3_omni", "cwm"),
        *("deepseek_ocr2", "deepseek_ocr2_encoder", "deepseek_ocr2_text", "deepseek_v32", "deepseek_v4"),
        *("diffusion_gemma", "diffusion_gemma_text", "dory", "dots3_note", "dots3_note_audio_encoder"),
        *("dots3_note_text", "embedding_gemma2", "embedding_gemma2_text", "ernie4_5_vl_moe", "ernie4_5_vl_moe_text"),
        *("esmc", "eurobert", "evolla", "exaone4_5", "exaone_moe", "fast_vlm", "flint", "fun_asr_nano", "gemma4"),
        *("gemma4_text", "gemma4_unified", "gemma4_unified_assistant", "gemma4_unified_text", "glm46v"),
        *("glm4_moe_lite", "glm4v_moe_text", "glm_image", "glm_image_text", "glm_moe_dsa", "glm_ocr", "glm_ocr_text"),
        *("glmasr", "glmasr_encoder", "glmga", "gradium_phonon_tts", "granite4_vision", "granite4_vision_text"),
        *("granite_docling", "granite_docling_text", "granite_speech_plus", "granite_swa", "granitemoe_swa", "gte"),
        *("higgs_audio_v2", "hrm_text", "hunyuan_vl", "hunyuan_vl_text", "hy_v3", "hy_v4", "hy_v4_vl", "hy_v4_vl_text"),
        *("hyperclovax", "hyperclovax_vision_v2", "internlm3", "iquestcoder", "jais2", "jev", "jina_embeddings_v3"),
        *("kimi_k25", "kolibri1", "laguna", "lara_mini", "lasr_encoder", "lfm2_moe", "lfm2_vl", "lfm3", "lfm3_vl"),
        *("lighton_ocr", "mellum", "mimi_decoder", "mimi_encoder", "mimo_v2_flash", "minicpm3", "minicpm_ocr"),
        *("minicpmv4_6", "minicpmv4_7", "minimax_m2", "minimax_m3_vl", "minimax_m3_vl_text", "ministral3", "mistral4"),
        *("mistral_large4", "mistral_large4_text", "modernvbert", "molmo2", "molmo2_text", "moonshine_streaming"),
        *("moss_transcribe_diarize", "muse_glimmer", "muse_glimmer_assistant", "muse_glimmer_text", "muse_spark"),
        *("muse_spark_text", "musicflamingo", "nanochat", "nemotron3_5_transcribe_asr_audio"),
        *("nemotron3_5_transcribe_word_timestamp", "nemotron3_diarization_audio", "neomme", "neucodec", "nomic_bert"),
        *("olmo_hybrid", "omniasr", "openai_privacy_filter", "paddleocr_vl", "paddleocr_vl_text", "pe_audio"),
        *("pe_audio_encoder", "pe_audio_video", "pe_audio_video_encoder", "pe_video", "pe_video_encoder", "pocket_tts"),
        *("pocket_tts_audio_tokenizer", "pocket_tts_audio_tokenizer_decoder", "pocket_tts_audio_tokenizer_encoder"),
        *("pp_chart2table", "qianfan_ocr", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_asr"),
        *("qwen4_exp", "qwen4_exp_text", "solar_open", "step3p5", "step3p7", "t5gemma2", "t5gemma2_decoder"),
        *("t5gemma2_encoder", "t5gemma2_text", "timesfm2_5", "ultrabert", "ultravbert", "unlimited_ocr"),
        *("unlimited_ocr_text", "vibevoice", "vibevoice_asr", "video_llama_3", "voxtral_realtime"),
        *("voxtral_realtime_encoder", "voxtral_realtime_text", "xcodec2", "youtu", "zaya"),
    }
)
"""Those of `dialects/model_types.json` (transformers 5.24.0) that transformers 4.57.6 has no class for, nor checkpoints
that brought their own code to it (exaone, sarvam_mla, sarvam_moe)."""
