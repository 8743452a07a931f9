//! From what was written to what code may hold: defaults, and everything that depends on more than one option.

use std::path::PathBuf;
use std::time::Duration;

use tierd_cache::config::{
    BUDGET_BYTES_MIN, DirectIo, EngineConfig, FetchConfig, LimitsConfig, OriginConfig, OriginKind, PlanConfig,
    RamConfig, StoreConfig, TraceConfig, VramConfig,
};
use tierd_cache::plan::PolicyKind;
use tierd_cache::plan::predict::{PredictConfig, PredictMode};
use tierd_cache::units::Share;

use crate::comfy::bridge::{SERVERS_MAX, ServerConfig};
use crate::idle::IdleConfig;
use crate::telemetry::otlp::OtlpConfig;

use super::callers::{self, role_or_none};
use super::options::Section;
use super::problems::Place;
use super::raw::{Raw, Table};
use super::reader::{Reader, address, count, count32, flag, list, mode, rate, share, text, time, words};
use super::units::exact_size;
use super::{ComfyConfig, Config, ListenConfig, LogConfig, LogFormat, Role, TcpConfig, TlsConfig, origins, places};

/// Longest path of a Unix socket: `sun_path` less its final NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Builds the configuration. Good only if the reader has no problems afterwards.
pub(super) fn build(raw: &Raw, reader: &mut Reader<'_>) -> Config {
    let store = store(raw, reader);
    let mut found = origins::build(&raw.origins, reader);
    origins::check_folders(&raw.origins, &found, &store.models, reader);
    if raw.origins.is_empty() {
        let path = places::state(reader.env, reader.root).join("origin");
        found.push(OriginConfig::new("local", OriginKind::Folder { path }));
    }
    let catalog = raw.tables.get(&Section::Catalog);
    let engine = EngineConfig {
        store,
        ram: ram(raw, reader),
        plan: plan(raw),
        trace: trace(raw, reader),
        predict: predict(raw),
        vram: vram(raw, reader),
        origins: found,
        fetch: fetch(raw, reader),
        refresh_interval: time(catalog, "refresh_interval").unwrap_or(Duration::from_secs(300)),
        limits: limits(raw),
    };
    let daemon = raw.tables.get(&Section::Daemon);
    Config {
        engine,
        listen: listen(raw, reader),
        log: log(raw),
        drain_deadline: time(daemon, "drain_deadline").unwrap_or(Duration::from_secs(20)),
        idle: idle(daemon),
        otlp: otlp(raw, reader),
        fleet: super::fleet::fleet(raw, reader),
        comfy: comfy(raw, reader),
    }
}

fn idle(table: Option<&Table>) -> IdleConfig {
    let idle = IdleConfig::default();
    IdleConfig {
        command: list(table, "idle_command").unwrap_or(idle.command),
        after: time(table, "idle_after").unwrap_or(idle.after),
        timeout: time(table, "idle_timeout").unwrap_or(idle.timeout),
    }
}

fn otlp(raw: &Raw, reader: &mut Reader<'_>) -> Option<OtlpConfig> {
    let table = raw.tables.get(&Section::Telemetry)?;
    let endpoint = text(table, "otlp_endpoint")?;
    if !endpoint.starts_with("http://") {
        let right =
            "name a collector on this machine or its network by http://host:4318, and let it speak TLS from there";
        let (place, path) = (table.place_of("otlp_endpoint"), table.path("otlp_endpoint"));
        reader.problems.add_with(place, path, "is not plain http, the only way that traces are sent", right);
    }
    Some(OtlpConfig { endpoint })
}

fn store(raw: &Raw, reader: &mut Reader<'_>) -> StoreConfig {
    let table = raw.tables.get(&Section::Store);
    let path = table.and_then(|table| reader.path(table, "path"));
    let mut store = StoreConfig::at(path.unwrap_or_else(|| places::state(reader.env, reader.root)));
    store.marks = flag(raw.tables.get(&Section::Comfy), "marks").unwrap_or(store.marks);
    let Some(table) = table else { return store };
    let some = Some(table);
    store.models = reader.path(table, "models").unwrap_or(store.models);
    store.budget = share(some, "budget").unwrap_or(store.budget);
    store.keep_free = share(some, "keep_free").unwrap_or(store.keep_free);
    store.scrub_interval = time(some, "scrub_interval").or(store.scrub_interval);
    store.file_mode = mode(some, "file_mode").unwrap_or(store.file_mode);
    store.dir_mode = mode(some, "dir_mode").unwrap_or(store.dir_mode);
    if words(some, "direct_io").as_deref() == Some("off") {
        store.direct_io = DirectIo::Off;
    }
    let problems = &mut *reader.problems;
    if store.path.starts_with(&store.models) {
        let right = "name another folder, for example one called models below store.path";
        let what = "is store.path or around it: ComfyUI would see unfinished files";
        problems.add_with(table.place_of("models"), table.path("models"), what, right);
    }
    let too_small = match store.budget {
        Share::Bytes(bytes) => bytes < BUDGET_BYTES_MIN,
        Share::Percent(percent) => percent <= 0.0,
    };
    if too_small {
        let right = format!("at least {}, or more than 0%", exact_size(BUDGET_BYTES_MIN));
        problems.add_with(table.place_of("budget"), table.path("budget"), "has no room for a model", right);
    }
    if matches!(store.keep_free, Share::Percent(percent) if percent >= 100.0) {
        problems.add(table.place_of("keep_free"), table.path("keep_free"), "leaves nothing for models");
    }
    for (key, mode, needed) in [("file_mode", store.file_mode, 0o600), ("dir_mode", store.dir_mode, 0o700)] {
        if mode & needed != needed {
            let right = format!("it must hold 0{needed:o}");
            problems.add_with(table.place_of(key), table.path(key), "would lock the daemon itself out", right);
        }
    }
    store
}

fn plan(raw: &Raw) -> PlanConfig {
    let named = words(raw.tables.get(&Section::Store), "policy");
    let policy = named.and_then(|name| PolicyKind::from_name(&name)).unwrap_or_default();
    PlanConfig { policy, ..PlanConfig::default() }
}

fn trace(raw: &Raw, reader: &mut Reader<'_>) -> TraceConfig {
    let mut trace = TraceConfig::default();
    let Some(table) = raw.tables.get(&Section::Trace) else { return trace };
    trace.record = reader.path(table, "record");
    trace.hash_names = flag(Some(table), "hash_names").unwrap_or(trace.hash_names);
    trace.bytes_max = count(Some(table), "bytes_max").unwrap_or(trace.bytes_max);
    trace
}

fn predict(raw: &Raw) -> PredictConfig {
    let table = raw.tables.get(&Section::Predict);
    let predict = PredictConfig::default();
    let share = |key| count32(table, key).map(|percent| f64::from(percent) / 100.0);
    PredictConfig {
        mode: words(table, "mode").and_then(|name| PredictMode::from_name(&name)).unwrap_or(predict.mode),
        threshold: share("threshold_percent").unwrap_or(predict.threshold),
        precision: share("precision_percent").unwrap_or(predict.precision),
    }
}

fn ram(raw: &Raw, reader: &mut Reader<'_>) -> RamConfig {
    let mut ram = RamConfig::default();
    let Some(table) = raw.tables.get(&Section::Ram) else { return ram };
    ram.budget = share(Some(table), "budget").unwrap_or(ram.budget);
    ram.reserve = share(Some(table), "reserve");
    if matches!(ram.reserve, Some(Share::Percent(percent)) if percent >= 100.0) {
        let right = "to turn the tier off, write budget = \"0\"";
        reader.problems.add_with(table.place_of("reserve"), table.path("reserve"), "leaves nothing for models", right);
    }
    ram
}

fn vram(raw: &Raw, reader: &mut Reader<'_>) -> VramConfig {
    let mut vram = VramConfig::default();
    let Some(table) = raw.tables.get(&Section::Comfy) else { return vram };
    let some = Some(table);
    vram.worker_expiry = time(some, "worker_expiry").unwrap_or(vram.worker_expiry);
    vram.high_percent = count32(some, "vram_high_percent").unwrap_or(vram.high_percent);
    vram.low_percent = count32(some, "vram_low_percent").unwrap_or(vram.low_percent);
    if vram.low_percent >= vram.high_percent {
        let key = if table.has("vram_low_percent") { "vram_low_percent" } else { "vram_high_percent" };
        let what = format!(
            "vram_low_percent ({}) is not below vram_high_percent ({}): what is loaded ahead would have to leave again",
            vram.low_percent, vram.high_percent
        );
        reader.problems.add(table.place_of(key), table.path(key), what);
    }
    vram
}

fn comfy(raw: &Raw, reader: &mut Reader<'_>) -> ComfyConfig {
    let table = raw.tables.get(&Section::Comfy);
    let comfy = ComfyConfig::default();
    let servers = table.map(|table| servers(table, reader)).unwrap_or_default();
    ComfyConfig {
        gate: flag(table, "gate").unwrap_or(comfy.gate),
        gate_timeout: time(table, "gate_timeout").unwrap_or(comfy.gate_timeout),
        free: flag(table, "free").unwrap_or(comfy.free),
        servers,
        ram_ahead: count32(table, "ram_ahead").unwrap_or(comfy.ram_ahead),
    }
}

/// ComfyUI's servers: addresses with commas between them, each called by its `host:port`.
fn servers(table: &Table, reader: &mut Reader<'_>) -> Vec<ServerConfig> {
    let given = text(table, "servers").unwrap_or_default();
    let mut servers: Vec<ServerConfig> = Vec::new();
    for url in given.split([',', ' ']).map(str::trim).filter(|url| !url.is_empty()) {
        let mut wrong = |what: String| {
            let right = "write http://host:port, such as http://127.0.0.1:8188; ComfyUI speaks no TLS by itself";
            reader.problems.add_with(table.place_of("servers"), table.path("servers"), what, right);
        };
        let parsed =
            url.parse::<http::Uri>().ok().filter(|uri| uri.scheme_str() == Some("http") && uri.query().is_none());
        let authority =
            parsed.as_ref().and_then(http::Uri::authority).filter(|authority| !authority.as_str().contains('@'));
        // The address itself is not shown if it may hold a password.
        let Some(name) = authority.map(ToString::to_string) else {
            wrong("holds something that is no server's address".to_owned());
            continue;
        };
        if servers.iter().any(|server| server.name == name) {
            wrong(format!("names {name} twice"));
        }
        servers.push(ServerConfig { name, url: url.to_owned() });
    }
    if servers.len() > SERVERS_MAX {
        let what = format!("names {} servers, more than {SERVERS_MAX}", servers.len());
        reader.problems.add(table.place_of("servers"), table.path("servers"), what);
    }
    servers
}

fn fetch(raw: &Raw, reader: &mut Reader<'_>) -> FetchConfig {
    let mut fetch = FetchConfig::default();
    let Some(table) = raw.tables.get(&Section::Fetch) else { return fetch };
    let some = Some(table);
    fetch.connections_max = count32(some, "connections_max").unwrap_or(fetch.connections_max);
    fetch.bytes_in_flight_max = count(some, "bytes_in_flight_max").unwrap_or(fetch.bytes_in_flight_max);
    fetch.bandwidth_max = rate(some, "bandwidth_max").unwrap_or(fetch.bandwidth_max);
    fetch.attempts_max = count32(some, "attempts_max").unwrap_or(fetch.attempts_max);
    fetch.backoff_min = time(some, "backoff_min").unwrap_or(fetch.backoff_min);
    fetch.backoff_max = time(some, "backoff_max").unwrap_or(fetch.backoff_max);
    if fetch.backoff_min > fetch.backoff_max {
        let key = if table.has("backoff_min") { "backoff_min" } else { "backoff_max" };
        let what =
            format!("backoff_min ({:?}) is longer than backoff_max ({:?})", fetch.backoff_min, fetch.backoff_max);
        reader.problems.add(table.place_of(key), table.path(key), what);
    }
    fetch
}

fn limits(raw: &Raw) -> LimitsConfig {
    let table = raw.tables.get(&Section::Limits);
    let limits = LimitsConfig::default();
    LimitsConfig {
        ensures_max: count32(table, "ensures_max").unwrap_or(limits.ensures_max),
        models_per_request_max: count32(table, "models_per_request_max").unwrap_or(limits.models_per_request_max),
        flights_max: count32(table, "flights_max").unwrap_or(limits.flights_max),
        leases_max: count32(table, "leases_max").unwrap_or(limits.leases_max),
        events_max: count32(table, "events_max").unwrap_or(limits.events_max),
        lease_max: time(table, "lease_max").unwrap_or(limits.lease_max),
    }
}

fn log(raw: &Raw) -> LogConfig {
    let table = raw.tables.get(&Section::Log);
    let format = if words(table, "format").as_deref() == Some("json") { LogFormat::Json } else { LogFormat::Text };
    LogConfig { format, filter: words(table, "filter").unwrap_or_else(|| "info".to_owned()) }
}

fn listen(raw: &Raw, reader: &mut Reader<'_>) -> ListenConfig {
    let table = raw.tables.get(&Section::Listen);
    let set = table.and_then(|table| reader.path(table, "unix"));
    let unix: PathBuf = set.unwrap_or_else(|| places::socket(reader.env, reader.root));
    if unix.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        let what = format!("{} has more than {SOCKET_PATH_BYTES_MAX} bytes, the kernel's limit", unix.display());
        let place = table.map_or(&Place::Whole, |table| table.place_of("unix"));
        reader.problems.add_with(place, "listen.unix", what, "choose a shorter path");
    }
    let http = address(table, "http").unwrap_or(Some(([127, 0, 0, 1], 9469).into()));
    let tcp = tcp(raw, reader);
    if let (Some(tcp), Some(http)) = (&tcp, http)
        && tcp.address.port() == http.port()
        && http.port() != 0
        && (tcp.address.ip() == http.ip() || tcp.address.ip().is_unspecified() || http.ip().is_unspecified())
    {
        let place = raw.tables.get(&Section::Tcp).map_or(&Place::Whole, |table| table.place_of("address"));
        let what = format!("{} is taken by listen.http", tcp.address);
        reader.problems.add_with(place, "listen.tcp.address", what, "choose another port");
    }
    let bytes = count(table, "message_bytes_max").unwrap_or(4 << 20);
    let workflow_bytes = count(table, "workflow_bytes_max").unwrap_or(16 << 20);
    ListenConfig {
        unix,
        tcp,
        http,
        requests_max: count32(table, "requests_max").unwrap_or(1024),
        client_requests_max: count32(table, "client_requests_max").unwrap_or(512),
        client_rate_max: count32(table, "client_rate_max").unwrap_or(10_000),
        callers: callers::build(raw, reader),
        socket_role: role_or_none(table, "socket_role", Role::Admin),
        message_bytes_max: usize::try_from(bytes).expect("the range ends below 2^32"),
        workflow_bytes_max: usize::try_from(workflow_bytes).expect("the range ends below 2^32"),
    }
}

fn tcp(raw: &Raw, reader: &mut Reader<'_>) -> Option<TcpConfig> {
    let tls_table = raw.tables.get(&Section::Tls);
    let tls = tls_table.and_then(|table| tls(table, reader));
    let Some(table) = raw.tables.get(&Section::Tcp) else {
        if let Some(table) = tls_table {
            reader.missing(&Table::new(Section::Tcp, Section::Tcp.path(), table.place.clone()), "address");
        }
        return None;
    };
    let token = reader.secret(table, "token");
    let Some(Some(address)) = address(Some(table), "address") else {
        reader.missing(table, "address");
        return None;
    };
    let has_token = |table: &Table| table.has("token_file") || table.has("token_env");
    let has_token = has_token(table) || raw.callers.iter().any(has_token);
    let has_client_ca = tls_table.is_some_and(|table| table.has("client_ca"));
    if !address.ip().to_canonical().is_loopback() {
        let (place, path) = (table.place_of("address"), table.path("address"));
        if tls_table.is_none() {
            let what = format!("{address} is not loopback, and there is no TLS");
            let right = "add [listen.tcp.tls] with certificate and key, or listen on 127.0.0.1";
            reader.problems.add_with(place, path.clone(), what, right);
        }
        if !has_token && !has_client_ca {
            let what = format!("{address} is not loopback, and callers need not prove who they are");
            let right = "add token_file, token_env, a [[caller]] with a token, or client_ca in [listen.tcp.tls]";
            reader.problems.add_with(place, path, what, right);
        }
    }
    if table.has("open_role") && (has_token || has_client_ca) {
        let what = "never counts: callers prove who they are";
        reader.problems.add_with(table.place_of("open_role"), table.path("open_role"), what, "remove it");
    }
    let open_role = role_or_none(Some(table), "open_role", Role::Admin);
    Some(TcpConfig { address, tls, token, open_role })
}

fn tls(table: &Table, reader: &mut Reader<'_>) -> Option<TlsConfig> {
    let certificate = reader.file(table, "certificate");
    let key = reader.file(table, "key");
    let client_ca = reader.file(table, "client_ca");
    for key in ["certificate", "key"] {
        if text(table, key).is_none() {
            reader.missing(table, key);
        }
    }
    if table.has("client_role") && !table.has("client_ca") {
        let what = "never counts: no client certificate is asked for";
        reader.problems.add_with(table.place_of("client_role"), table.path("client_role"), what, "set client_ca");
    }
    let client_role = role_or_none(Some(table), "client_role", Role::Admin);
    Some(TlsConfig { certificate: certificate?, key: key?, client_ca, client_role })
}
