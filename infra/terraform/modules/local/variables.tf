variable "directory" {
  description = "Where the cluster lives: data, certificates, settings, logs. An absolute path, for this cluster alone."
  type        = string

  validation {
    condition     = can(regex("^/[A-Za-z0-9._/-]*[A-Za-z0-9_-]$", var.directory)) && !can(regex("//|/\\.\\.?(/|$)", var.directory))
    error_message = "The directory must be an absolute path of letters, digits, '.', '_', '-' and '/', without '..'."
  }
}

variable "binary" {
  description = "The program `cloudpaxos`. Another one, or the same path with another content, restarts the nodes one by one."
  type        = string
}

variable "nodes" {
  description = "How many nodes: 1, 3 or 5. Fixed from the first start on."
  type        = number
  default     = 3

  validation {
    condition     = contains([1, 3, 5], var.nodes)
    error_message = "A cluster has 1, 3 or 5 nodes."
  }
}

variable "client_port" {
  description = "Where the first node serves clients, on loopback; the next node one port higher, and so on."
  type        = number
  default     = 2371

  validation {
    condition     = var.client_port == floor(var.client_port) && var.client_port >= 1024 && var.client_port <= 65531
    error_message = "The port must be a whole number from 1024 to 65531."
  }
}

variable "peer_port" {
  description = "Where the first node serves the other nodes; the next node one port higher, and so on. Fixed from the first start on."
  type        = number
  default     = 2381

  validation {
    condition     = var.peer_port == floor(var.peer_port) && var.peer_port >= 1024 && var.peer_port <= 65531
    error_message = "The port must be a whole number from 1024 to 65531."
  }
}

variable "data_groups" {
  description = "Data groups of a new cluster. Fixed from the first start on."
  type        = number
  default     = 2

  validation {
    condition     = var.data_groups == floor(var.data_groups) && var.data_groups >= 1 && var.data_groups <= 64
    error_message = "The number of data groups must be a whole number from 1 to 64."
  }
}

variable "tls" {
  description = "Whether nodes speak TLS, with clients and among themselves, and demand a token or a client certificate. Switching it stops all nodes before it starts the first one: those with and those without do not understand each other."
  type        = bool
  default     = true
}

variable "certificate_days" {
  description = "How long certificates are valid. Holds for those made from then on; what exists is kept."
  type        = number
  default     = 365

  validation {
    condition     = var.certificate_days == floor(var.certificate_days) && var.certificate_days >= 1
    error_message = "Certificates are valid for a whole number of days, at least 1."
  }
}

variable "settings" {
  description = "Further settings of every node, by the long flags of `cloudpaxos start`, such as { \"log-level\" = \"debug\" }. A change restarts the nodes one by one."
  type        = any
  default     = {}

  validation {
    condition = length(setintersection(try(keys(var.settings), ["name"]), [
      "name", "data-dir", "listen-client", "listen-peer", "advertise-client", "advertise-peer", "initial-cluster",
      "data-groups", "roles", "client-tls-dir", "peer-tls-dir", "api-token-file",
    ])) == 0
    error_message = "Settings are a map, without those that the module makes from its other variables (name, directory, addresses, cluster, roles, TLS)."
  }
}

variable "restart" {
  description = "Any text. Another one restarts all nodes one by one, though nothing else has changed."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^[ -~]*$", var.restart))
    error_message = "The text must be one line of printable ASCII characters."
  }
}

variable "ready_seconds" {
  description = "How long to wait for a node to be ready before giving up."
  type        = number
  default     = 60

  validation {
    condition     = var.ready_seconds == floor(var.ready_seconds) && var.ready_seconds >= 1
    error_message = "The time is a whole number of seconds, at least 1."
  }
}

variable "remove_data" {
  description = "Whether destroying removes data, certificates and logs as well. If not, the next apply goes on where the cluster has stopped."
  type        = bool
  default     = false
}
