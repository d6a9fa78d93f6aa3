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

/// What operators ask about certificates.
pub fn routes(pki: Arc<Pki>) -> Router {
    Router::new()
        .route("/tls/reload", post(reload))
        .route("/tls/gateway-certificate", post(gateway_certificate))
        .with_state(pki)
}

async fn reload(State(pki): State<Arc<Pki>>) -> Response {
    match pki.reload().await {
        Ok(expiries) => Json(expiries).into_response(),
        Err(cause) => error(StatusCode::INTERNAL_SERVER_ERROR, &cause.to_string()),
    }
}

async fn gateway_certificate(State(pki): State<Arc<Pki>>, Json(request): Json<GatewayRequest>) -> Response {
    let name = match GatewayName::new(&request.name) {
        Ok(name) => name,
        Err(cause) => return error(StatusCode::BAD_REQUEST, &cause.to_string()),
    };
    let subject = Subject::Gateway(name.clone());
    let signed = Request::read(request.request.as_bytes())
        .and_then(|request| pki.authority().sign_client(&request, &subject, SystemTime::now(), GATEWAY_VALIDITY));
    match signed {
        Ok(signed) => {
            let not_after = timestamp(signed.not_after).to_string();
            tracing::info!(gateway = %name, not_after, "certificate signed for a gateway");
            let authority = pki.authority().pem().to_owned();
            Json(GatewayAnswer { certificate: signed.pem, authority, not_after }).into_response()
        }
        Err(cause @ SignError::Make(_)) => error(StatusCode::INTERNAL_SERVER_ERROR, &cause.to_string()),
        Err(cause) => error(StatusCode::BAD_REQUEST, &cause.to_string()),
    }
}
