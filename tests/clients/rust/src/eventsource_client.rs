use eventsource_client::{Client, ClientBuilder, Error, ReconnectOptions, SSE};
use futures::StreamExt;
use launchdarkly_sdk_transport::HyperTransport;

use crate::{Outcome, SILENCE, is_final, show};

pub async fn read(url: &str) -> Outcome {
    let pauses = ReconnectOptions::reconnect(true)
        .retry_initial(true)
        .backoff_factor(1); // they would double, since good connections count for nothing in their first minute
    let mut items = ClientBuilder::for_url(url)?
        .reconnect(pauses.build())
        .build_with_transport(
            HyperTransport::builder()
                .read_timeout(SILENCE)
                .build_http()?,
        )
        .stream();
    while let Some(item) = items.next().await {
        match item {
            Ok(SSE::Event(event)) => {
                show(
                    event.id.as_deref().unwrap_or_default(),
                    &event.event_type,
                    &event.data,
                );
                if event.event_type == "end" {
                    break; // it would ask for ever
                }
            }
            Ok(SSE::Connected(connection)) if is_final(connection.response().status()) => break,
            Err(Error::UnexpectedResponse(response, _)) if is_final(response.status()) => break,
            _ => {} // it comes back by itself
        }
    }
    Ok(())
}
