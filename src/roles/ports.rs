//! Opens the ports of a role.

use tokio::net::TcpListener;

use crate::admin::{AdminArgs, CannotListen, listen};
use crate::gateway::Listeners;
use crate::gateway::args::GatewayArgs;

/// The ports of a role that serves clients and workers.
pub(super) struct Ports {
    pub gateway: Listeners,
    pub admin: TcpListener,
}

impl Ports {
    /// Opens all of them.
    pub async fn open(gateway: &GatewayArgs, admin: &AdminArgs) -> Result<Self, CannotListen> {
        let clients = listen(gateway.listen, "--listen").await?;
        let workers = listen(gateway.worker_listen, "--worker-listen").await?;
        Ok(Ports { gateway: Listeners { clients, workers }, admin: self::admin(admin).await? })
    }
}

/// Opens the admin port.
pub(super) async fn admin(args: &AdminArgs) -> Result<TcpListener, CannotListen> {
    listen(args.admin_listen, "--admin-listen").await
}
