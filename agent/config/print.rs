//! Prints the effective configuration as TOML that can be read again. Secrets are not in it: where one is set, a comment
//! says so.

use std::fmt;

use tierd_cache::config::{Credentials, DirectIo, OriginConfig, OriginKind};

use super::units::{exact_duration, exact_share, exact_size};
use super::{CallerConfig, Config, ListenConfig, LogFormat, Role};

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let store = &self.engine.store;
        writeln!(f, "[store]")?;
        put(f, "path", &store.path.display())?;
        put(f, "models", &store.models.display())?;
        put(f, "budget", &exact_share(store.budget))?;
        put(f, "keep_free", &exact_share(store.keep_free))?;
        if let Some(interval) = store.scrub_interval {
            put(f, "scrub_interval", &exact_duration(interval))?;
        }
        put(f, "direct_io", if store.direct_io == DirectIo::Auto { &"auto" } else { &"off" })?;
        put(f, "file_mode", &format!("{:04o}", store.file_mode))?;
        put(f, "dir_mode", &format!("{:04o}", store.dir_mode))?;
        put(f, "policy", &self.engine.plan.policy.name())?;
        let ram = &self.engine.ram;
        writeln!(f, "\n[ram]")?;
        put(f, "budget", &exact_share(ram.budget))?;
        ram.reserve.map_or(Ok(()), |reserve| put(f, "reserve", &exact_share(reserve)))?;
        let predict = &self.engine.predict;
        writeln!(f, "\n[predict]")?;
        put(f, "mode", &predict.mode.name())?;
        writeln!(f, "threshold_percent = {:.0}", predict.threshold * 100.0)?;
        writeln!(f, "precision_percent = {:.0}", predict.precision * 100.0)?;
        for origin in &self.engine.origins {
            put_origin(f, origin)?;
        }
        let fetch = &self.engine.fetch;
        writeln!(f, "\n[fetch]\nconnections_max = {}", fetch.connections_max)?;
        put(f, "bytes_in_flight_max", &exact_size(fetch.bytes_in_flight_max))?;
        put(f, "bandwidth_max", &rate(fetch.bandwidth_max))?;
        writeln!(f, "attempts_max = {}", fetch.attempts_max)?;
        put(f, "backoff_min", &exact_duration(fetch.backoff_min))?;
        put(f, "backoff_max", &exact_duration(fetch.backoff_max))?;
        writeln!(f, "\n[catalog]")?;
        put(f, "refresh_interval", &exact_duration(self.engine.refresh_interval))?;
        self.put_listen(f)?;
        writeln!(f, "\n[log]")?;
        put(f, "format", if self.log.format == LogFormat::Text { &"text" } else { &"json" })?;
        put(f, "filter", &self.log.filter)?;
        let limits = &self.engine.limits;
        writeln!(f, "\n[limits]\nensures_max = {}", limits.ensures_max)?;
        writeln!(f, "models_per_request_max = {}", limits.models_per_request_max)?;
        writeln!(f, "flights_max = {}", limits.flights_max)?;
        writeln!(f, "leases_max = {}", limits.leases_max)?;
        writeln!(f, "events_max = {}", limits.events_max)?;
        put(f, "lease_max", &exact_duration(limits.lease_max))?;
        writeln!(f, "\n[daemon]")?;
        put(f, "drain_deadline", &exact_duration(self.drain_deadline))?;
        let words = self.idle.command.iter().cloned().map(toml::Value::String).collect();
        writeln!(f, "idle_command = {}", toml::Value::Array(words))?;
        put(f, "idle_after", &exact_duration(self.idle.after))?;
        put(f, "idle_timeout", &exact_duration(self.idle.timeout))?;
        let trace = &self.engine.trace;
        writeln!(f, "\n[trace]")?;
        trace.record.as_ref().map_or(Ok(()), |folder| put(f, "record", &folder.display()))?;
        writeln!(f, "hash_names = {}", trace.hash_names)?;
        put(f, "bytes_max", &exact_size(trace.bytes_max))?;
        self.put_comfy(f)?;
        if let Some(otlp) = &self.otlp {
            writeln!(f, "\n[telemetry]")?;
            put(f, "otlp_endpoint", &otlp.endpoint)?;
        }
        self.fleet.as_ref().map_or(Ok(()), |fleet| put_fleet(f, fleet))
    }
}

impl Config {
    fn put_comfy(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (comfy, vram) = (&self.comfy, &self.engine.vram);
        writeln!(f, "\n[comfy]\ngate = {}\nfree = {}", comfy.gate, comfy.free)?;
        put(f, "gate_timeout", &exact_duration(comfy.gate_timeout))?;
        put(f, "worker_expiry", &exact_duration(vram.worker_expiry))?;
        writeln!(f, "vram_high_percent = {}\nvram_low_percent = {}", vram.high_percent, vram.low_percent)?;
        writeln!(f, "ram_ahead = {}\nmarks = {}", comfy.ram_ahead, self.engine.store.marks)?;
        let servers: Vec<&str> = comfy.servers.iter().map(|server| server.url.as_str()).collect();
        if servers.is_empty() { Ok(()) } else { put(f, "servers", &servers.join(", ")) }
    }

    fn put_listen(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listen = &self.listen;
        writeln!(f, "\n[listen]")?;
        put(f, "unix", &listen.unix.display())?;
        put(f, "http", &listen.http.map_or("off".to_owned(), |address| address.to_string()))?;
        writeln!(f, "requests_max = {}", listen.requests_max)?;
        writeln!(f, "client_requests_max = {}", listen.client_requests_max)?;
        writeln!(f, "client_rate_max = {}", listen.client_rate_max)?;
        put(f, "socket_role", &word(listen.socket_role))?;
        put(f, "message_bytes_max", &exact_size(listen.message_bytes_max as u64))?;
        put(f, "workflow_bytes_max", &exact_size(listen.workflow_bytes_max as u64))?;
        put_tcp(f, listen)?;
        listen.callers.iter().try_for_each(|caller| put_caller(f, caller))
    }
}

fn put_tcp(f: &mut fmt::Formatter<'_>, listen: &ListenConfig) -> fmt::Result {
    let Some(tcp) = &listen.tcp else { return Ok(()) };
    writeln!(f, "\n[listen.tcp]")?;
    put(f, "address", &tcp.address)?;
    note_secret(f, "the bearer token", tcp.token.is_some())?;
    let proves = tcp.token.is_some() || listen.callers.iter().any(|caller| caller.token.is_some());
    if !proves && tcp.tls.as_ref().is_none_or(|tls| tls.client_ca.is_none()) {
        put(f, "open_role", &word(tcp.open_role))?;
    }
    let Some(tls) = &tcp.tls else { return Ok(()) };
    writeln!(f, "\n[listen.tcp.tls]")?;
    put(f, "certificate", &tls.certificate.display())?;
    put(f, "key", &tls.key.display())?;
    let Some(authorities) = &tls.client_ca else { return Ok(()) };
    put(f, "client_ca", &authorities.display())?;
    put(f, "client_role", &word(tls.client_role))
}

fn word(role: Option<Role>) -> &'static str {
    role.map_or("none", Role::word)
}

fn put_caller(f: &mut fmt::Formatter<'_>, caller: &CallerConfig) -> fmt::Result {
    writeln!(f, "\n[[caller]]")?;
    put(f, "name", &caller.name)?;
    put(f, "role", &caller.role.word())?;
    note_secret(f, "the bearer token", caller.token.is_some())?;
    caller.certificate.as_ref().map_or(Ok(()), |name| put(f, "certificate", name))?;
    caller.uid.map_or(Ok(()), |uid| writeln!(f, "uid = {uid}"))?;
    caller.gid.map_or(Ok(()), |gid| writeln!(f, "gid = {gid}"))
}

fn put_origin(f: &mut fmt::Formatter<'_>, origin: &OriginConfig) -> fmt::Result {
    writeln!(f, "\n[[origin]]")?;
    put(f, "name", &origin.name)?;
    match &origin.kind {
        OriginKind::S3 { bucket, endpoint, region, virtual_hosted, credentials } => {
            put(f, "kind", &"s3")?;
            put(f, "bucket", bucket)?;
            if let Some(endpoint) = endpoint {
                put(f, "endpoint", endpoint)?;
            }
            put(f, "region", region)?;
            writeln!(f, "virtual_hosted = {virtual_hosted}")?;
            match credentials {
                Credentials::Keys { id, token, .. } => {
                    put(f, "access_key_id", id)?;
                    note_secret(f, "the secret key", true)?;
                    note_secret(f, "the session token", token.is_some())?;
                }
                Credentials::Environment => writeln!(f, "# keys: what the environment gives")?,
                Credentials::Anonymous => writeln!(f, "anonymous = true")?,
            }
        }
        OriginKind::Http { url, bearer } => {
            put(f, "kind", &"http")?;
            put(f, "url", url)?;
            note_secret(f, "the bearer token", bearer.is_some())?;
        }
        OriginKind::Folder { path } => {
            put(f, "kind", &"folder")?;
            put(f, "path", &path.display())?;
        }
    }
    put(f, "prefix", &origin.prefix)?;
    put(f, "manifest", &origin.manifest)?;
    writeln!(f, "connections_max = {}", origin.connections_max)?;
    put(f, "bandwidth_max", &rate(origin.bandwidth_max))?;
    put(f, "connect_timeout", &exact_duration(origin.connect_timeout))?;
    put(f, "request_timeout", &exact_duration(origin.request_timeout))?;
    put(f, "stall_timeout", &exact_duration(origin.stall_timeout))
}

/// Writes one key with a text, quoted as TOML has it.
fn put(f: &mut fmt::Formatter<'_>, key: &str, value: &dyn fmt::Display) -> fmt::Result {
    writeln!(f, "{key} = {}", toml::Value::String(value.to_string()))
}

fn note_secret(f: &mut fmt::Formatter<'_>, what: &str, is_set: bool) -> fmt::Result {
    if is_set { writeln!(f, "# {what} is set (not shown)") } else { Ok(()) }
}

fn rate(rate: Option<u64>) -> String {
    rate.map_or("none".to_owned(), exact_size)
}

fn put_fleet(f: &mut fmt::Formatter<'_>, fleet: &crate::fleet::FleetConfig) -> fmt::Result {
    writeln!(f, "\n[fleet]")?;
    put(f, "nats", &fleet.servers.join(","))?;
    fleet.credentials.as_ref().map_or(Ok(()), |path| put(f, "credentials", &path.display()))?;
    note_secret(f, "the NATS token", fleet.token.is_some())?;
    fleet.ca.as_ref().map_or(Ok(()), |path| put(f, "ca", &path.display()))?;
    put(f, "node", &fleet.node)?;
    put(f, "address", &fleet.address)?;
    let labels: Vec<String> = fleet.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    put(f, "labels", &labels.join(","))?;
    put(f, "prefix", &fleet.prefix)?;
    put(f, "inventory_interval", &exact_duration(fleet.inventory_interval))
}
