//! A capture client's WebSocket, as far as hints go.

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use waystation_proto::CAPTURE_SUBPROTOCOL;
use waystation_proto::frame::{self, kind};
use waystation_tests::World;
use waystation_tests::world::PATIENCE;

/// Opens `/capture` and waits for its first hint.
pub async fn hint(world: &World, capability: &str) -> serde_json::Value {
    let mut request = format!("ws://{}/capture", world.plain()).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", CAPTURE_SUBPROTOCOL.parse().unwrap());
    let tcp = TcpStream::connect(world.plain()).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(request, tcp).await.unwrap();
    let hello = serde_json::json!({ "protocol": 1, "capabilities": [capability] });
    socket.send(Message::Binary(frame::encode(kind::HELLO, hello.to_string().as_bytes()))).await.unwrap();
    let hearing = async {
        loop {
            let Message::Binary(bytes) = socket.next().await.unwrap().unwrap() else { continue };
            if let Some(hint) = frame::split_message(bytes).unwrap().iter().find(|frame| frame.kind == kind::HINT) {
                return serde_json::from_slice(&hint.body).unwrap();
            }
        }
    };
    tokio::time::timeout(PATIENCE, hearing).await.expect("a hint")
}
