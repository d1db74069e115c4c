//! Three members in one process, over real TCP: `cargo run --example cluster`.

use floe::{Config, Engine, Member, NodeId};
use std::net::TcpListener;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A cluster on machines of its own says once and for all where each node listens. Here any free port will do, below
    // those that the system gives to outgoing connections.
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let members: Vec<_> = (1..=3)
        .zip((7401..32_000).filter(is_free))
        .map(|(node, port)| Member { node: NodeId(node), address: format!("127.0.0.1:{port}") })
        .collect();
    let mut engines = Vec::new();
    for member in &members {
        let mut config =
            Config::member(format!("floe-data/node-{}", member.node), member.node, members.clone());
        config.shards = 12;
        engines.push(Engine::open(config)?);
    }
    // Any node takes any request: it is forwarded to the one that leads.
    engines[0].client().put_blocking("hello", "world")?;
    let value = engines[2].client().get_blocking("hello")?;
    println!("read on node 3: {:?}", value.map(|value| value.escape_ascii().to_string()));
    for engine in engines {
        engine.shutdown();
    }
    Ok(())
}
