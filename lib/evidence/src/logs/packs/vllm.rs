//! Lines of stock vLLM (V1, and the pool lines of V0), versions 0.6 to 0.2x.

use super::{Pack, Pattern, event, ignore, pool};

pub(super) const PACK: Pack = Pack {
    name: "vllm",
    doc: "vLLM's server and engine: arguments, cache pool, compilation, statistics, HTTP, errors",
    extends: &[],
    patterns: PATTERNS,
};

const PATTERNS: &[Pattern] = &[
    // ---- hot lines first
    event(
        "engine_stats",
        "Engine {engine:int}: Avg prompt throughput: {prompt_tokens_per_s:num} tokens/s, Avg generation throughput: {generation_tokens_per_s:num} tokens/s, Running: {running:int} reqs, Waiting: {waiting:int} reqs, GPU KV cache usage: {kv_cache_usage_percent:num}%(?, Prefix cache hit rate: {prefix_cache_hit_percent:num}%?)",
        "statistics of one engine, every ten seconds",
    ),
    event(
        "http_request",
        "{client:word} - \"{method:word} {path:word} HTTP/{http:word}\" {status:int}",
        "one finished HTTP request (uvicorn's access log)",
    ),
    event("request_received", "Received request {request_id:word}: ", "a request as it arrived"),
    event("request_added", "Added request {request_id:word}.", "a request handed to the engine"),
    event("request_finished", "Finished request {request_id:word}.", "a request done"),
    event("request_aborted", "Aborted request {request_id:word}.", "a request given up by its client"),
    event(
        "preempted",
        "is preempted by {mode:word} mode because there is not enough KV cache space",
        "the pool was full: a request lost its blocks and starts again",
    ),
    // ---- what was asked for
    event("args", "non-default args: {:dict}", "the server's arguments as given; opens a boot"),
    event("version", "vLLM API server version {version:word}", "version banner of the API server"),
    event(
        "version",
        "  version {version:word}",
        "version banner below the logo; the commit stands behind `+g`",
    ),
    event(
        "engine_config",
        "LLM engine (v{version:word}) with config: {:kwargs}",
        "the engine's resolved configuration",
    ),
    event("architecture", "Resolved architecture: {architecture:word}", "class of the model"),
    event("attention_backend", "Using {backend:word} backend.", "attention backend in use")
        .looks_for(" backend."),
    event("attention_backend", "Using {backend:text} backend on V1 engine.", "attention backend in use"),
    event(
        "unknown_environment",
        "Unknown vLLM environment variable detected: {variable:word}",
        "a variable nobody reads: a knob that has no effect",
    ),
    event(
        "chunked_prefill",
        "Chunked prefill is enabled with max_num_batched_tokens={max_num_batched_tokens:int}",
        "chunked prefill and its budget",
    ),
    event(
        "enforce_eager",
        "Enforce eager set, disabling torch.compile and CUDAGraphs",
        "no graphs on this boot",
    ),
    // ---- the cache pool
    pool("max_model_len", "Using max model len {max_model_len:int}", "longest request"),
    pool(
        "kv_cache_dtype",
        "Using {kv_cache_dtype:word} data type to store kv cache",
        "number format of K and V",
    ),
    pool(
        "mamba_cache_mode",
        "Mamba cache mode is set to '{mamba_cache_mode:word}'(? for {architecture:word} by default?) when prefix caching {reason:text}",
        "mode in effect for recurrent states, whatever was asked for",
    ),
    pool(
        "kv_block_size",
        "Setting kv cache block size to {kv_block_size:int} for {backend:word} backend",
        "tokens of a kernel page",
    ),
    pool(
        "attention_block_size",
        "Setting attention block size to {attention_block_size:int} tokens",
        "tokens of an attention block, raised until it holds a recurrent state",
    ),
    pool(
        "mamba_page_padding",
        "Padding mamba page size by {padding_percent:num}%",
        "recurrent states are padded to the size of an attention block",
    ),
    pool(
        "num_gpu_blocks_override",
        "Overriding num_gpu_blocks={old:int} with num_gpu_blocks_override={new:int}",
        "block count set by hand; from 0 it is a passing pool for measuring graph memory",
    ),
    pool(
        "available_memory",
        "Available KV cache memory: {available_gib:num} GiB",
        "memory given to the pool",
    ),
    pool(
        "kv_cache_size",
        "GPU KV cache size: {kv_cache_tokens:int} tokens(?, Maximum concurrency for {concurrency_tokens:int} tokens per request: {max_concurrency:num}x?)",
        "tokens the pool holds; newer versions add the concurrency on the same line",
    ),
    pool(
        "max_concurrency",
        "Maximum concurrency for {concurrency_tokens:int} tokens per request: {max_concurrency:num}x",
        "requests of that length the pool holds",
    ),
    pool("gpu_blocks", "# GPU blocks: {gpu_blocks:int}", "block count, printed outright (V0)"),
    pool("gpu_blocks", "# cuda blocks: {gpu_blocks:int}", "block count, printed outright (V0)"),
    event(
        "padding_layers",
        "Add {layers:int} padding layers, may waste at most {waste_percent:num}% KV cache memory",
        "groups of layers had unequal sizes",
    ),
    event(
        "cp_multiplied",
        "Multiplying the GPU KV cache size by the cp_world_size {factor:int}",
        "reported tokens count every context-parallel rank",
    ),
    // ---- loading and compiling
    event("weights_loaded", "Loading weights took {seconds:num} seconds", "weights read"),
    event(
        "model_loaded",
        "Model loading took {gib:num} GiB(? memory?) and {seconds:num} seconds",
        "memory of the model",
    ),
    event(
        "compile_cache_dir",
        "Using cache directory: {path:word} for vLLM's torch.compile",
        "where graphs are cached",
    ),
    event("aot_loaded", "Directly load AOT compilation from path {path:word}", "compile cache hit"),
    event("aot_saved", "saved AOT compiled function to {path:word}", "compile cache miss: built and stored"),
    event(
        "graph_loaded",
        "Directly load the compiled graph(s) for {what:text} from the cache, took {seconds:num} s",
        "compile cache hit",
    ),
    event("graph_compiled", "Compiling a graph for {what:text} takes {seconds:num} s", "compile cache miss"),
    event("compile_total", "torch.compile took {seconds:num} s in total", "time of all compilation"),
    event(
        "compile_artifacts",
        "collected artifacts: {entries:int} entries, {artifacts:int} artifacts, {bytes:int} bytes",
        "what compilation left",
    ),
    event("profile_run", "Initial profiling/warmup run took {seconds:num} s", "first run of the model"),
    event("graph_memory", "Estimated CUDA graph memory: {gib:num} GiB", "memory of captured graphs"),
    event(
        "graphs_captured",
        "Graph capturing finished in {seconds:int} secs, took {gib:num} GiB",
        "graphs captured",
    ),
    event(
        "engine_ready",
        "init engine (profile, create kv cache, warmup model) took {seconds:num} seconds",
        "the engine is up; its pool is final",
    ),
    event("server_starting", "Starting vLLM {what:text} on {url:word}", "the server opens its port"),
    event("server_ready", "Application startup complete.", "the server answers"),
    event("server_stopping", "Shutting down", "the server stops").generic(),
    event(
        "sampling_overridden",
        "Default vLLM sampling parameters have been overridden by {who:text}: `{params:text}`",
        "sampling defaults other than vLLM's own",
    ),
    // ---- trouble
    event("engine_died", "proc {who:word} died", "an engine process is gone").looks_for(" died"),
    event("engine_died", "{who:word} died", "a process is gone").looks_for(" died").generic(),
    event("engine_fatal", "EngineCore encountered a fatal error", "the engine stopped on an error"),
    event("engine_fatal", "EngineCore encountered an issue", "the engine stopped on an error"),
    event("engine_fatal", "AsyncLLM output_handler failed", "the engine stopped on an error"),
    event("process_fatal", "Segmentation fault", "a process was ended by the system"),
    event("process_fatal", "Fatal Python error: {message:msg}", "the interpreter of a process gave up"),
    event("traceback", "Traceback (most recent call last)", "a Python traceback opens here"),
    event("out_of_memory", "CUDA out of memory", "device memory exhausted"),
    event("cuda_error", "CUDA error: {message:msg}", "the device refused"),
    event(
        "exception",
        "{error:word}Error: {message:msg}",
        "the last line of a traceback; `error` is the class without its ending `Error`",
    )
    .generic(),
    event("log_error", "ERROR {message:msg}", "any other line of level ERROR").generic(),
    event("log_fatal", "CRITICAL {message:msg}", "any line of level CRITICAL").generic(),
    event("log_warning", "WARNING {message:msg}", "any other line of level WARNING").generic(),
    // ---- known and silent
    ignore("shards", "Loading safetensors checkpoint shards:", "progress bar"),
    ignore("capturing", "Capturing CUDA graphs (", "progress bar"),
    ignore("route", " Route: /", "a route of the server"),
    ignore("routes", "Available routes are:", "heading"),
    ignore("uvicorn", "Started server process [", "uvicorn's greeting"),
    ignore("uvicorn", "Waiting for application startup.", "uvicorn's greeting"),
    ignore("banner", "█     █", "logo").looks_for("█     █").generic(),
    ignore("banner", "  model   ", "the model below the logo"),
];
