//! Three members in one process, over real TCP: `cargo run --example cluster`.

use floe::{Config, Engine, Member, NodeId};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let members: Vec<_> = (1..=3)
        .map(|node| Member { node: NodeId(node), address: format!("127.0.0.1:{}", 7400 + node) })
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
