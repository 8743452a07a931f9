//! `tierd status`, `tierd flights` and `tierd health`: how the node is and what it is doing.

use clap::Args;
use tierd_cache::units::human_duration;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;

use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::out::{Out, aligned, bar, count, rate, size};
use crate::cli::{Context, client, workers};
use crate::rpc::pb;

/// Cells of a tier's bar.
const BAR_CELLS: usize = 20;

/// `tierd flights`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tierd flights\n  tierd flights 12\n  tierd flights 12 --cancel")]
pub(crate) struct FlightsArgs {
    /// Only this flight, also if it has ended not long ago
    #[arg(value_name = "ID")]
    pub flight: Option<u64>,
    /// Stop it for everyone who waits; finished pieces are kept
    #[arg(long, requires = "flight")]
    pub cancel: bool,
}

/// Runs `tierd status`.
pub(crate) async fn status(context: &Context) -> Outcome {
    let mut daemon = client::connect(&context.reach, &context.env).await?;
    let node = daemon.node.get_node(pb::GetNodeRequest {}).await?.into_inner().node.unwrap_or_default();
    let flights = daemon.cache.list_flights(pb::ListFlightsRequest {}).await?.into_inner().flights;
    context.out.document(&serde_json::json!({ "node": node, "flights": flights }))?;
    print_node(context.out, &node)?;
    if !flights.is_empty() {
        context.out.line("")?;
        print_flights(context.out, &flights)?;
    }
    Ok(())
}

/// Prints the node: tiers with bars, then origins.
pub(crate) fn print_node(out: Out, node: &pb::Node) -> std::io::Result<()> {
    out.line(summary(node))?;
    out.line(format_args!("models folder: {}\n", node.models_path))?;
    for line in tier_lines(node) {
        out.line(line)?;
    }
    out.line("")?;
    let devices = workers::device_lines(node);
    if !devices.is_empty() {
        for line in devices {
            out.line(line)?;
        }
        out.line("")?;
    }
    for line in origin_lines(node) {
        out.line(line)?;
    }
    Ok(())
}

/// The node on one line: version, uptime, how much is going on.
pub(crate) fn summary(node: &pb::Node) -> String {
    let uptime = node.uptime.and_then(|uptime| uptime.to_std()).unwrap_or_default();
    format!(
        "tierd {}, up {}; {} known, {}, {} waiting, {}",
        node.version,
        human_duration(uptime),
        count(node.models_known, "model"),
        count(node.flights, "flight"),
        count(node.ensures, "caller"),
        count(node.leases, "lease")
    ) + &need(node)
}

/// Whether anybody needs the node. Nothing for a daemon that does not say.
fn need(node: &pb::Node) -> String {
    let idle = node.activity.as_ref().and_then(|activity| activity.idle?.to_std());
    match idle {
        None => String::new(),
        Some(idle) if idle.is_zero() => "; needed now".to_owned(),
        Some(idle) => format!("; idle for {}", human_duration(idle)),
    }
}

/// Tiers with bars, and below them what each has to say.
pub(crate) fn tier_lines(node: &pb::Node) -> Vec<String> {
    let tier = |tier: &pb::TierStatus| {
        vec![
            tier.tier().word(),
            bar(tier.used_bytes.saturating_add(tier.reserved_bytes), tier.capacity_bytes, BAR_CELLS),
            size(tier.used_bytes),
            size(tier.reserved_bytes),
            size(tier.held_bytes),
            size(tier.capacity_bytes),
            tier.models.to_string(),
            tier.mode.clone(),
        ]
    };
    let rows: Vec<_> = node.tiers.iter().map(tier).collect();
    let mut lines = aligned(&["TIER", "", "USED>", "RESERVED>", "HELD>", "CAPACITY>", "MODELS>", "MODE"], &rows);
    let told = node.tiers.iter().filter(|tier| !tier.detail.is_empty());
    lines.extend(told.map(|tier| format!("{}: {}", tier.tier().word(), tier.detail)));
    lines
}

/// Origins, how they are and how fast.
pub(crate) fn origin_lines(node: &pb::Node) -> Vec<String> {
    let origin = |origin: &pb::OriginStatus| {
        vec![
            origin.origin.clone(),
            origin.kind.clone(),
            origin.state().word(),
            origin.models.to_string(),
            format!("{}/{}", origin.connections, origin.connections_allowed),
            rate(origin.bytes_per_second),
            origin.address.clone(),
            origin.detail.clone(),
        ]
    };
    let rows: Vec<_> = node.origins.iter().map(origin).collect();
    aligned(&["ORIGIN", "KIND", "STATE", "MODELS>", "CONNECTIONS>", "SPEED>", "ADDRESS", "DETAIL"], &rows)
}

/// Runs `tierd flights`.
pub(crate) async fn flights(context: &Context, args: FlightsArgs) -> Outcome {
    let mut daemon = client::connect(&context.reach, &context.env).await?;
    let flights = match args.flight {
        Some(flight) if args.cancel => {
            daemon.cache.cancel_flight(pb::CancelFlightRequest { flight, client: String::new() }).await?;
            context.out.document(&serde_json::json!({ "cancelled": flight }))?;
            context.out.line(format_args!("flight {flight} stops; its finished pieces are kept"))?;
            return Ok(());
        }
        Some(flight) => {
            let answer = daemon.cache.get_flight(pb::GetFlightRequest { flight }).await?.into_inner();
            answer.flight.into_iter().collect()
        }
        None => daemon.cache.list_flights(pb::ListFlightsRequest {}).await?.into_inner().flights,
    };
    context.out.document(&serde_json::json!({ "flights": flights }))?;
    if flights.is_empty() {
        context.out.line("no flights under way")?;
        return Ok(());
    }
    print_flights(context.out, &flights)?;
    Ok(())
}

fn print_flights(out: Out, flights: &[pb::Flight]) -> std::io::Result<()> {
    for line in flight_lines(flights) {
        out.line(line)?;
    }
    Ok(())
}

/// Flights with bars.
pub(crate) fn flight_lines(flights: &[pb::Flight]) -> Vec<String> {
    let row = |flight: &pb::Flight| {
        let state = match &flight.fault {
            Some(fault) => fault.text.clone(),
            None => flight.phase().word(),
        };
        vec![
            flight.flight.to_string(),
            flight.priority().word(),
            bar(flight.bytes_done, flight.bytes_total, BAR_CELLS),
            size(flight.bytes_done),
            size(flight.bytes_total),
            flight.connections.to_string(),
            flight.retries.to_string(),
            flight.waiters.to_string(),
            flight.models.join(" "),
            state,
        ]
    };
    let rows: Vec<_> = flights.iter().map(row).collect();
    let names =
        ["FLIGHT>", "PRIORITY", "", "DONE>", "SIZE>", "CONNECTIONS>", "RETRIES>", "WAITERS>", "MODELS", "STATE"];
    aligned(&names, &rows)
}

/// Runs `tierd health`.
pub(crate) async fn health(context: &Context) -> Outcome {
    let mut daemon = client::connect(&context.reach, &context.env).await?;
    let answer = daemon.health.check(HealthCheckRequest { service: String::new() }).await?.into_inner();
    let serving = answer.status == ServingStatus::Serving as i32;
    context.out.document(&serde_json::json!({ "serving": serving }))?;
    if !serving {
        return Err(Failure::new(Exit::Unreachable, "the daemon answers but does not serve: it is draining"));
    }
    context.out.line("serving")?;
    Ok(())
}
