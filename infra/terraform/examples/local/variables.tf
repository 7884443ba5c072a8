variable "directory" {
  description = "Where the cluster lives."
  type        = string
  default     = "cluster"
}

variable "binary" {
  description = "The program `cloudpaxos`, as `cargo build --release` makes it."
  type        = string
}

variable "nodes" {
  description = "How many nodes: 1, 3 or 5."
  type        = number
  default     = 3
}

variable "client_port" {
  description = "The first node's port for clients."
  type        = number
  default     = 2371
}

variable "peer_port" {
  description = "The first node's port for the other nodes."
  type        = number
  default     = 2381
}

variable "tls" {
  description = "Whether nodes speak TLS."
  type        = bool
  default     = true
}

variable "settings" {
  description = "Further settings of every node, by the long flags of `cloudpaxos start`."
  type        = any
  default     = {}
}

variable "remove_data" {
  description = "Whether destroying removes the data as well."
  type        = bool
  default     = false
}
