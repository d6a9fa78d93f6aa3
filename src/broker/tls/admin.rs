//! The operators' view of certificates, on their socket.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::authority::{GATEWAY_VALIDITY, Request, SignError};
use super::facts::timestamp;
use super::pki::Pki;
use super::subject::{GatewayName, Subject};
use crate::broker::admin::error;
use crate::broker::deeds::{self, Deeds};
use crate::domain::audit::Digest;

/// Asks for the certificate of a gateway.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayRequest {
    /// What the gateway is called.
    pub name: String,
    /// A request for a certificate (PKCS #10, PEM) with the gateway's key.
    pub request: String,
}

/// A gateway's certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GatewayAnswer {
    /// The certificate in PEM.
    pub certificate: String,
    /// The authority that signed it, and the broker's own certificates: PEM.
    pub authority: String,
    /// Its last moment: RFC 3339.
    pub not_after: String,
}

type Operators = (Arc<Pki>, Deeds);

/// What operators ask about certificates.
pub fn routes(pki: Arc<Pki>, deeds: Deeds) -> Router {
    Router::new()
        .route("/tls/reload", post(reload))
        .route("/tls/gateway-certificate", post(gateway_certificate))
        .with_state((pki, deeds))
}

async fn reload(State((pki, _)): State<Operators>) -> Response {
    match pki.reload().await {
        Ok(expiries) => Json(expiries).into_response(),
        Err(cause) => error(StatusCode::INTERNAL_SERVER_ERROR, &cause.to_string()),
    }
}

async fn gateway_certificate(State((pki, deeds)): State<Operators>, Json(request): Json<GatewayRequest>) -> Response {
    let name = match GatewayName::new(&request.name) {
        Ok(name) => name,
        Err(cause) => return error(StatusCode::BAD_REQUEST, &cause.to_string()),
    };
    let subject = Subject::Gateway(name.clone());
    let signed = Request::read(request.request.as_bytes())
        .and_then(|request| pki.authority().sign_client(&request, &subject, SystemTime::now(), GATEWAY_VALIDITY));
    let signed = match signed {
        Ok(signed) => signed,
        Err(cause @ SignError::Make(_)) => return error(StatusCode::INTERNAL_SERVER_ERROR, &cause.to_string()),
        Err(cause) => return error(StatusCode::BAD_REQUEST, &cause.to_string()),
    };
    let not_after = timestamp(signed.not_after).to_string();
    // Whoever has it is told where sessions are, so it is given out only once that is on record.
    let target = format!("{name} until {not_after}, SHA-256 {}", Digest::of(&signed.certificate));
    let deed = deeds.deed(deeds::GATEWAY_CERTIFICATE, target);
    if let Err(cause) = deeds.record(deed, "a certificate was signed").await {
        let text = format!("{cause}; no certificate is given out that is not in the audit");
        return error(StatusCode::SERVICE_UNAVAILABLE, &text);
    }
    tracing::info!(gateway = %name, not_after, "certificate signed for a gateway");
    let authority = pki.authority().pem().to_owned();
    Json(GatewayAnswer { certificate: signed.pem, authority, not_after }).into_response()
}
