# What differs between installations of the standby site.

variable "region" {
  type    = string
  default = "eu-west-1"
}

variable "settings" {
  description = "Cluster, zones, image, package, configuration, hosts: see module site, which says what it takes."
  type        = any
}

variable "database_profile" {
  description = "Output of the primary stack."
  type        = string
}

variable "controller_profile" {
  description = "Output of the primary stack."
  type        = string
}
