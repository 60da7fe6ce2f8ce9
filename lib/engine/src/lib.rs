//! The engine: scheduler, pools, dispatch, model text, backends
