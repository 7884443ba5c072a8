//! Services whose machinery does not exist: each call says what is missing, instead of pretending.

use super::Context;
use super::errors::AUTH_NOT_ENABLED;
use futures_util::stream::BoxStream;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::{auth_server, lease_server, watch_server};
use tonic::{Request, Response, Status, Streaming};

pub(super) struct Watch;

#[tonic::async_trait]
impl watch_server::Watch for Watch {
    type WatchStream = BoxStream<'static, Result<pb::WatchResponse, Status>>;

    async fn watch(&self, _: Request<Streaming<pb::WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("cloudpaxos: Watch is not implemented yet; poll with Range and min_mod_revision"))
    }
}

pub(super) struct Lease;

fn no_leases() -> Status {
    Status::unimplemented("cloudpaxos: leases are not implemented yet")
}

#[tonic::async_trait]
impl lease_server::Lease for Lease {
    async fn lease_grant(&self, _: Request<pb::LeaseGrantRequest>) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        Err(no_leases())
    }

    async fn lease_revoke(
        &self,
        _: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        Err(no_leases())
    }

    type LeaseKeepAliveStream = BoxStream<'static, Result<pb::LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        _: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        Err(no_leases())
    }

    async fn lease_time_to_live(
        &self,
        _: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        Err(no_leases())
    }

    async fn lease_leases(
        &self,
        _: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        Err(no_leases())
    }
}

pub(super) struct Auth(pub(super) Context);

/// Every method that needs users or roles.
macro_rules! no_users {
    ($($method:ident $request:ident $response:ident),* $(,)?) => {$(
        // tonic's attribute does not reach into a macro, so the boxed future is written out.
        fn $method<'a, 'f>(
            &'a self,
            _: Request<pb::$request>,
        ) -> std::pin::Pin<Box<dyn Future<Output = Result<Response<pb::$response>, Status>> + Send + 'f>>
        where
            'a: 'f,
            Self: 'f,
        {
            Box::pin(async { Err(Status::unimplemented("cloudpaxos: users and roles are not implemented yet")) })
        }
    )*};
}

#[tonic::async_trait]
impl auth_server::Auth for Auth {
    async fn authenticate(
        &self,
        _: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        Err(AUTH_NOT_ENABLED.into())
    }

    async fn auth_status(&self, _: Request<pb::AuthStatusRequest>) -> Result<Response<pb::AuthStatusResponse>, Status> {
        // A cluster begins at 1, as etcd's does, and nothing changes it.
        let header = Some(self.0.header_now());
        Ok(Response::new(pb::AuthStatusResponse { header, enabled: false, auth_revision: 1 }))
    }

    async fn auth_disable(
        &self,
        _: Request<pb::AuthDisableRequest>,
    ) -> Result<Response<pb::AuthDisableResponse>, Status> {
        // It is off.
        Ok(Response::new(pb::AuthDisableResponse { header: Some(self.0.header_now()) }))
    }

    no_users! {
        auth_enable AuthEnableRequest AuthEnableResponse,
        user_add AuthUserAddRequest AuthUserAddResponse,
        user_get AuthUserGetRequest AuthUserGetResponse,
        user_list AuthUserListRequest AuthUserListResponse,
        user_delete AuthUserDeleteRequest AuthUserDeleteResponse,
        user_change_password AuthUserChangePasswordRequest AuthUserChangePasswordResponse,
        user_grant_role AuthUserGrantRoleRequest AuthUserGrantRoleResponse,
        user_revoke_role AuthUserRevokeRoleRequest AuthUserRevokeRoleResponse,
        role_add AuthRoleAddRequest AuthRoleAddResponse,
        role_get AuthRoleGetRequest AuthRoleGetResponse,
        role_list AuthRoleListRequest AuthRoleListResponse,
        role_delete AuthRoleDeleteRequest AuthRoleDeleteResponse,
        role_grant_permission AuthRoleGrantPermissionRequest AuthRoleGrantPermissionResponse,
        role_revoke_permission AuthRoleRevokePermissionRequest AuthRoleRevokePermissionResponse,
    }
}
