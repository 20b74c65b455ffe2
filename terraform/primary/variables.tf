# What differs between installations of the primary site.

variable "region" {
  type    = string
  default = "eu-central-1"
}

variable "settings" {
  description = "Cluster, zones, image, package, configuration, hosts: see module site, which says what it takes."
  type        = any
}
